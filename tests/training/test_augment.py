"""Augmentation: the same dice give the same batch, labels move along with pictures, each effect touches only its own.

Its JPEG is compared with Pillow's.
"""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsgen.training import augment as augmenting
from dsgen.training.augment import MIRRORED, SHARES, TOUCHED, augment, jpeg

HEIGHT, WIDTH = 40, 52
Four = tuple[Tensor, Tensor, Tensor, Tensor]

# which of background, image, mask and depth an effect may change; every one of them it must
CHANGES = {
    "feather": {"image"},
    "hard edge": {"image"},
    "fringe": {"image"},
    "foreground light": {"image"},
    "foreground blur": {"image"},
    "contact shadow": {"image"},
    "uneven light": {"image"},
    "zoom": {"background", "image", "mask", "depth"},
    "misalignment": {"background"},
    "light": {"background", "image"},
    "exposure": {"background", "image"},
    "blur": {"background", "image"},
    "noise": {"background", "image"},
    "jpeg": {"background", "image"},
}
PARTS = ("background", "image", "mask", "depth")


def dice(seed: int = 0) -> torch.Generator:
    """Make dice."""
    return torch.Generator().manual_seed(seed)


def scene(count: int = 6, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Four:
    """Draw textured rooms, people pasted on them, their masks, and depths of 1 to 4 m with a hole where depth is 0."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    waves = torch.rand(count, 3, 2, 1, 1, generator=rng) * 0.5 + 0.1
    background = 0.5 + 0.25 * torch.sin(waves[:, :, 0] * x + waves[:, :, 1] * y)
    background += 0.1 * torch.rand(background.shape, generator=rng)
    mask = torch.zeros(count, 1, height, width)
    for k in range(count):
        mask[k, 0, height // 4 : height * 3 // 4, width // 4 + k % 3 : width // 2] = 1
    person = 0.2 + 0.5 * torch.rand(count, 3, height, width, generator=rng)
    soft = 0.9 * mask + 0.1 * mask.roll(1, 3)  # a soft edge, which reaches a pixel out of the mask
    depth_m = (1 + 3 * x / width - 0.5 * mask).clone()
    depth_m[:, :, :5, :7] = 0
    return background, background.lerp(person, soft), mask, depth_m


def varied(batch: Four, before: Four) -> list[set[str]]:
    """Name the parts of each sample that are not what they were."""
    pairs = list(zip(PARTS, batch, before, strict=True))
    return [{name for name, now, was in pairs if not torch.equal(now[k], was[k])} for k in range(len(batch[0]))]


def near(maps: Tensor, pixels: int) -> Tensor:
    """Spread the ones of maps (B,1,H,W) by so many pixels."""
    return torch.nn.functional.max_pool2d(maps, 2 * pixels + 1, 1, pixels)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make every sample get the effects named, and no others."""

    def choose(*names: str, mirrored: float = 0.0) -> None:
        assert set(names) <= set(SHARES)
        monkeypatch.setattr(augmenting, "SHARES", {name: float(name in names) for name in SHARES})
        monkeypatch.setattr(augmenting, "TOUCHED", 1.0)
        monkeypatch.setattr(augmenting, "MIRRORED", mirrored)

    return choose


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (48, 32), (17, 23), (33, 5)])
def test_shapes_ranges_and_layout_stay(size: tuple[int, int], strength: float):
    """Pictures stay finite, in 0..1 and channels last, the mask 0 or 1, depth positive or 0, at any size."""
    before = scene(24, *size)
    after = augment(*before, dice(1), strength)
    for was, now in zip(before, after, strict=True):
        assert now.shape == was.shape
        assert now.dtype == torch.float32
        assert now.isfinite().all()
        assert not now.requires_grad
    for pictures in after[:2]:
        assert pictures.is_contiguous(memory_format=torch.channels_last)
        assert pictures.min() >= 0
        assert pictures.max() <= 1
    assert set(after[2].unique().tolist()) <= {0.0, 1.0}
    assert after[3].min() >= 0
    assert after[3].max() <= before[3].max()


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_what_it_is_given_stays_as_it_is(strength: float):
    """Neither pictures nor labels are written to, nor shared with what comes back, nor the global dice thrown."""
    given = scene(16)
    kept, state = [values.clone() for values in given], torch.get_rng_state()
    after = augment(*given, dice(), strength)
    assert all(map(torch.equal, given, kept))
    assert torch.equal(torch.get_rng_state(), state)
    for values in after:
        values.fill_(0.5)
    assert all(map(torch.equal, given, kept))


def test_same_dice_same_batch():
    """Equal dice give equal bits and other dice something else, also for dice that were thrown before."""
    one, again, other = (augment(*scene(), dice(seed)) for seed in (5, 5, 6))
    assert all(map(torch.equal, one, again))
    assert not any(map(torch.equal, one, other))
    thrown = dice(5)
    augment(*scene(), thrown)
    assert not any(map(torch.equal, one, augment(*scene(), thrown)))


def test_at_strength_0_half_are_mirrored_and_nothing_else_happens():
    """Pictures, mask and depth are mirrored together, bit for bit, in about half of the samples."""
    before = scene(200, 8, 12)
    after = augment(*before, dice(), 0.0)
    mirrored = [
        all(torch.equal(now[k], was[k].flip(2)) for now, was in zip(after, before, strict=True)) for k in range(200)
    ]
    same = [all(torch.equal(now[k], was[k]) for now, was in zip(after, before, strict=True)) for k in range(200)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert abs(sum(mirrored) - 200 * MIRRORED) < 4 * (200 * 0.25) ** 0.5


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_the_rest_of_the_samples_stays_clean(monkeypatch: pytest.MonkeyPatch, strength: float):
    """About `TOUCHED` times the strength of the samples get anything at all."""
    monkeypatch.setattr(augmenting, "MIRRORED", 0.0)
    before, expected = scene(500, 8, 12), TOUCHED * strength
    touched = sum(map(bool, varied(augment(*before, dice(2), strength), before)))  # type: ignore[arg-type]
    assert abs(touched / 500 - expected) < 4 * (0.25 / 500) ** 0.5


def test_the_stronger_the_further(only):
    """With the same dice a strength changes more than a smaller one; at 1 it is a few per cent of the range."""
    only(*SHARES)
    before = scene(40)
    changes = [(augment(*before, dice(), s)[1] - before[1]).abs().mean().item() for s in (0, 0.1, 0.4, 1, 2)]
    assert changes == sorted(set(changes))
    assert changes[0] == 0
    assert 0.02 < changes[3] < 0.25


@pytest.mark.parametrize("name", SHARES)
def test_an_effect_changes_its_own_parts_in_every_sample(only, name: str):
    """By itself it changes those parts that are its, in every sample, and no others."""
    only(name)
    before = scene(12)
    after = augment(*before, dice(3))
    assert varied(after, before) == [CHANGES[name]] * 12  # type: ignore[arg-type]


def test_effects_keep_within_their_places(only):
    """Edge effects stay at the edge, foreground effects in the foreground, the shadow out of it and dark."""
    before = background, image, mask, _ = scene(12)

    def change(name: str) -> Tensor:
        only(name)
        return augment(*before, dice(4))[1] - image

    inner, outer = 1 - near(1 - mask, 2), near(mask, 2)
    edge = (outer - inner).expand_as(image)
    for name in ("feather", "fringe"):
        moved = change(name) != 0
        assert not moved[edge == 0].any(), name
        assert moved[edge > 0].float().mean() > 0.4, name
    assert torch.equal(image + change("hard edge"), torch.where(mask > 0, image, background))
    assert not change("foreground blur")[(mask == 0).expand_as(image)].any()
    assert not change("foreground light")[(near(mask, 1) == 0).expand_as(image)].any()
    shadow = change("contact shadow")
    assert not shadow[(mask > 0).expand_as(image)].any()
    assert (shadow <= 0).all()
    rows = (shadow / image).mean((1, 3))  # it is darkest below the feet, which are in the last row of the mask
    assert ((rows.argmin(1) - (HEIGHT * 3 // 4 - 1)).abs() <= 1).all()
    assert (rows[:, 0].abs() < rows.amin(1).abs() / 10).all()


def test_no_foreground_no_shadow(only):
    """A picture without anybody in it keeps its floor, and nothing becomes nan."""
    only("contact shadow", "feather", "hard edge", "fringe", "foreground light", "foreground blur")
    background, _, mask, _ = scene(8)
    _, image, *_ = augment(background, background, mask * 0, None, dice())
    assert torch.equal(image, background)


def test_foreground_light_is_one_gain_for_each_channel(only):
    """Within the foreground every pixel is multiplied alike, by 2 to the power of at most 0.8 stops."""
    only("foreground light")
    before = _, image, mask, _ = scene(12)
    image.mul_(0.5)  # none is clipped
    gain = augment(*before, dice())[1] / image
    inner = (1 - near(1 - mask, 1)).expand_as(image) > 0
    for k in range(12):
        for c in range(3):
            values = gain[k, c][inner[k, c]]
            assert values.max() - values.min() < 1e-5
            assert 2**-0.8 <= values.mean() <= 2**0.8
    spread = gain[inner].log2()
    assert spread.min() < -0.3
    assert spread.max() > 0.3


def test_light_is_common_and_exposure_nearly(only):
    """Where nobody stands both pictures stay the same under `light`, and within 0.15 of each other by `exposure`."""
    background, _, mask, depth_m = scene(12)
    only("light")
    one, other, *_ = augment(background, background, mask, depth_m, dice())
    assert torch.equal(one, other)
    assert (one - background).abs().mean((1, 2, 3)).min() > 0.002
    only("exposure")
    one, other, *_ = augment(background, background, mask, depth_m, dice())
    apart = (one - other).abs()
    assert (apart.mean((1, 2, 3)) > 1e-4).all()
    assert apart.max() < 0.15


@pytest.mark.parametrize("mirrored", [0.0, 1.0])
def test_zoom_moves_the_camera_in(only, mirrored: float):
    """A ramp gets flatter by the zoom along both axes, and the wall nearer by as much; what has no depth keeps none."""
    only("zoom", mirrored=mirrored)
    y, x = torch.meshgrid(torch.linspace(0.1, 0.9, HEIGHT), torch.linspace(0.1, 0.9, WIDTH), indexing="ij")
    ramps = torch.stack([x, y, y * 0 + 0.5]).expand(16, 3, HEIGHT, WIDTH)
    depth_m = torch.full((16, 1, HEIGHT, WIDTH), 4.0)
    depth_m[:, :, ::4] = 0
    background, image, _, nearer = augment(ramps, ramps, torch.zeros_like(depth_m), depth_m, dice())
    assert torch.equal(background, image)
    for k in range(16):
        (zoom,) = (4 / nearer[k][nearer[k] > 0]).unique().tolist()
        assert 1 < zoom <= 1.35
        middle = image[k, :, 3:-3, 3:-3]
        across = 0.8 / (WIDTH - 1) / zoom * (-1 if mirrored else 1)
        assert middle[0].diff(dim=1).mean().item() == pytest.approx(across, rel=1e-3)
        assert middle[1].diff(dim=0).mean().item() == pytest.approx(0.8 / (HEIGHT - 1) / zoom, rel=1e-3)
        assert 0.1 < (nearer[k] == 0).float().mean() < 0.4


def test_mask_and_depth_stay_with_the_image(only):
    """In a scene of which the image shows the mask in red and depth in green, it does so after zoom and mirroring."""
    only("zoom", mirrored=0.5)
    _, _, mask, _ = scene(16)
    depth_m = torch.where(mask > 0, 2.0, 4.0)
    depth_m[:, :, :9] = 0
    image = torch.cat([mask, depth_m / 4, mask * 0], 1)
    _, image, after, nearer = augment(image * 0, image, mask, depth_m, dice())
    red, green = image[:, :1], image[:, 1:2]
    sure = (red - 0.5).abs() > 1e-4  # a pixel that is half covered may round either way
    assert torch.equal(after[sure], (red > 0.5).float()[sure])
    flat = near(green, 1) == -near(-green, 1)  # nearest and bilinear agree where all is alike
    zoom = 4 / nearer.amax((1, 2, 3), keepdim=True)
    assert flat.float().mean() > 0.6
    torch.testing.assert_close((nearer * zoom)[flat], (green * 4)[flat])


def test_misalignment_is_about_a_pixel(only):
    """Read off ramps, the background is shifted by up to 1.2 pixels each way, plus a trifle of turning and scaling."""
    only("misalignment")
    y, x = torch.meshgrid(torch.arange(HEIGHT) / HEIGHT, torch.arange(WIDTH) / WIDTH, indexing="ij")
    ramps = torch.stack([x, y, x * 0]).expand(32, 3, HEIGHT, WIDTH)
    background, *_ = augment(ramps, ramps, torch.zeros(32, 1, HEIGHT, WIDTH), None, dice())
    moved = (background - ramps)[:, :, 3:-3, 3:-3] * torch.tensor([WIDTH, HEIGHT, 1.0]).view(3, 1, 1)
    trifle = 0.004 * (WIDTH + HEIGHT) / 2
    shifts = moved.mean((2, 3))[:, :2]
    assert shifts.abs().max() < 1.2 + 1e-3
    assert shifts.abs().max() > 0.8
    assert shifts.mean().abs() < 0.3
    spread = moved.flatten(2).amax(2) - moved.flatten(2).amin(2)
    assert 0.02 < spread.max() < 2 * trifle


def test_noise_grows_with_the_light(only):
    """Its variance is 0.3 + 0.7 times the light, it has no mean, and none of it is common to pictures or channels."""
    only("noise")
    grey = torch.full((48, 3, 64, 64), 0.2)
    grey[:, :, :, 32:] = 0.7
    mask = torch.zeros(48, 1, 64, 64)
    noise = torch.cat(augment(grey, grey, mask, None, dice())[:2]) - grey.repeat(2, 1, 1, 1)
    dark, bright = noise[..., :32].flatten(1), noise[..., 32:].flatten(1)
    expected = (0.3 + 0.7 * 0.7) / (0.3 + 0.7 * 0.2)
    assert (bright.var(1) / dark.var(1)).mean().item() == pytest.approx(expected, rel=0.02)
    sigma = dark.std(1) / (0.3 + 0.7 * 0.2) ** 0.5
    assert sigma.max() < 0.05 * 1.3 * 1.03
    assert sigma.mean().item() == pytest.approx(0.025, rel=0.3)
    assert (dark.mean(1) / dark.std(1)).abs().max() < 5 / dark.shape[1] ** 0.5
    own = noise[..., :32].flatten(2).transpose(0, 1).reshape(3 * 96, -1)  # of every picture's every channel
    alike = torch.corrcoef(own) - torch.eye(len(own))
    assert alike.abs().max() < 6 / own.shape[1] ** 0.5


def test_blur_takes_detail_not_light(only):
    """It leaves less contrast between neighbours and the same mean."""
    only("blur")
    before = scene(12)
    for now, was in zip(augment(*before, dice())[:2], before[:2], strict=True):
        assert (now.diff(dim=3).abs().mean((1, 2, 3)) < was.diff(dim=3).abs().mean((1, 2, 3))).all()
        assert (now.mean((1, 2, 3)) - was.mean((1, 2, 3))).abs().max() < 0.01


@pytest.mark.parametrize("samples", [8, 7])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_whole_batch(ranks: int, samples: int):
    """Sample k of rank r comes out as sample r + k * ranks of the whole batch, also where a rank has one less."""
    batch = scene(samples)
    whole = augment(*batch, dice(8))
    for rank in range(ranks):
        part = augment(*(values[rank::ranks] for values in batch), dice(8), rank=rank, world_size=ranks)  # type: ignore[call-arg,arg-type]
        for now, expected in zip(part, whole, strict=True):
            torch.testing.assert_close(now, expected[rank::ranks], rtol=0, atol=1e-5)


def test_without_depth(only):
    """None stays None, and all else is as it would be with depth."""
    only("zoom", "noise", "light", mirrored=0.5)
    batch = scene()
    *pictures, depth_m = augment(*batch[:3], None, dice())
    assert depth_m is None
    assert all(map(torch.equal, pictures, augment(*batch, dice())[:3]))


def test_one_sample_is_a_batch():
    """The smallest batch works, whatever is chosen for it."""
    for seed in range(20):
        assert augment(*scene(1), dice(seed))[1].shape == (1, 3, HEIGHT, WIDTH)


def photograph(noise: float, height: int, width: int) -> np.ndarray:
    """Draw a colourful picture (height,width,3) u1."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 20 + y / 33), np.sin(x / 29 - y / 17), np.cos(x / 15)], 2)
    return (waves * 90 + 128 + rng.normal(0, noise, (height, width, 3))).clip(0, 255).round().astype(np.uint8)


def ours(picture: np.ndarray, quality: float) -> np.ndarray:
    """Send a picture through `jpeg`; levels as floats."""
    pictures = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    return jpeg(pictures, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy() * 255


@pytest.mark.parametrize("quality", [10, 30, 49, 50, 75, 90, 95, 100])
@pytest.mark.parametrize("size", [(64, 96), (50, 71), (17, 33)])
def test_jpeg_loses_what_a_file_loses(size: tuple[int, int], quality: int):
    """It is as Pillow's within a level on average, within two where there is noise, of which a file loses 12 and more.

    The encoder's integer colours alone are worth half a level; the rest is coefficients that then round otherwise.
    """
    for noise, bound in ((0, 1.0), (20, 2.0)):
        picture = photograph(noise, *size)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        theirs = np.asarray(Image.open(file)).astype(float)
        assert np.abs(ours(picture, quality) - theirs).mean() < bound
        if noise:
            assert np.abs(picture - theirs).mean() > 12


def test_jpeg_quality_is_each_pictures_own():
    """A picture comes out as it would alone, and the worse the quality the further from what it was."""
    picture = photograph(8, 40, 56)
    pictures = torch.from_numpy(picture).permute(2, 0, 1).float().div(255).repeat(4, 1, 1, 1)
    qualities = [15.0, 40.5, 80.0, 98.0]
    together = jpeg(pictures, torch.tensor(qualities)).permute(0, 2, 3, 1).numpy() * 255
    for one, quality in zip(together, qualities, strict=True):
        assert np.abs(one - ours(picture, quality)).mean() < 0.02
    lost = np.abs(together - picture).mean((1, 2, 3))
    assert list(lost) == sorted(lost, reverse=True)


def test_a_file_holds_what_a_camera_recorded(only, monkeypatch: pytest.MonkeyPatch):
    """What is too bright or dark for the sensor is clipped before it is compressed."""
    only("light", "uneven light", "noise", "jpeg")
    seen = []
    monkeypatch.setattr(augmenting, "jpeg", lambda pictures, _: seen.append(pictures.aminmax()) or pictures)
    background, image, mask, _ = scene()
    augment(background.clamp(min=0.9), image * 0.02, mask, None, dice())
    ((least, most),) = seen
    assert least >= 0
    assert most <= 1
