"""Augmentation that makes clean composites look like photographs, in batches, on any device.

A network that sees only noise-free composites learns that every pixel that differs from the background, if only in
the last bit, is foreground. Two real photographs of one room differ everywhere: by noise, compression, exposure, and a
fraction of a pixel in position. A person cut out of another photograph has soft, hard or fringed edges, and that
photograph's light and sharpness.

The effects are applied in the order of the real thing: paste, cast shadows, point the camera, expose, record. `SHARES`
says how often each occurs.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgen.training.unet import luma

MIRRORED = 0.5  # share of the samples, at any strength
TOUCHED = 0.7  # share of the samples that get any other effect, at strength 1; the rest stay clean
SHARES = {  # of the touched samples, by effect
    "feather": 0.25,
    "hard edge": 0.15,
    "fringe": 0.2,
    "foreground light": 0.4,
    "foreground blur": 0.2,
    "contact shadow": 0.3,
    "uneven light": 0.3,
    "zoom": 0.3,
    "misalignment": 0.4,
    "light": 0.8,
    "exposure": 0.5,
    "blur": 0.3,
    "noise": 0.6,
    "jpeg": 0.4,
}
_COLUMNS = 80  # random numbers per sample

# ITU-T T.81, tables K.1 and K.2
_LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


class _RandomColumns:
    """A table of uniform random numbers (B,columns), a row for each sample, handed out column by column.

    As every effect takes its columns whether a sample gets it or not, a sample's numbers do not depend on the others.
    """

    def __init__(self, table: Tensor):
        self.table, self.used = table, 0

    def uniform(self, low: float, high: float, columns: int = 1) -> Tensor:
        """Return (B,columns) numbers in low..high."""
        values = self.table[:, self.used : self.used + columns]
        self.used += columns
        if values.shape[1] < columns:
            raise IndexError("the table of random numbers has too few columns")
        return low + (high - low) * values

    def pairs(self, low: float, high: float, columns: int = 1) -> Tensor:
        """Return (2B,columns) numbers in low..high, first those for the backgrounds, then those for the images."""
        return torch.cat([self.uniform(low, high, columns), self.uniform(low, high, columns)])

    def chance(self, share: float) -> Tensor:
        """Return (B,) bool, each true with probability `share`."""
        return self.uniform(0, 1)[:, 0] < share


@torch.no_grad()
def augment(
    background: Tensor,
    image: Tensor,
    mask: Tensor,
    depth_m: Tensor | None,
    generator: torch.Generator,
    strength: float = 1.0,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the batch as a camera might have seen it.

    Takes background and image (B,3,H,W) in 0..1, mask (B,1,H,W) 0 or 1, and depth (B,1,H,W) in metres or None, all on
    one device, and returns new tensors of the same kind; images are channels last.

    Light, colour, mirroring and zoom are the same for background and image, and mask and depth move along. Shadows and
    edges are the image's. Noise, blur, JPEG, and small differences in exposure and position differ between background
    and image. Depth takes the nearest pixel, and 0 keeps marking a missing depth. A zoom by z divides the depth by z,
    as if the camera had moved nearer: a network that is not told the focal length assumes one (Yin et al., Metric3D,
    ICCV 2023).

    `strength` scales every effect; at 0, half of the samples are mirrored and nothing else happens. All random numbers
    come from `generator`, which is on the CPU, so equal generators give the same batch on the same device. With
    `world_size` ranks whose generators are equal, sample k here is sample `rank + k * world_size` of the whole batch
    and changes as it would have there.
    """
    table = torch.rand(len(image) * world_size, _COLUMNS, generator=generator)[rank::world_size]  # (B,columns)
    random = _RandomColumns(table)
    mirrored = random.chance(MIRRORED)
    touched = random.chance(TOUCHED * min(1.0, strength))
    chosen = {name: touched & random.chance(share) for name, share in SHARES.items()}

    pair, mask = torch.cat([background, image]), mask.clone()  # (2B,3,H,W)
    pair = pair.contiguous(memory_format=torch.channels_last)
    depth_m = None if depth_m is None else depth_m.clone()
    both = mirrored.repeat(2)
    effects = _Effects()
    for maps, flags in ((pair, both), (mask, mirrored), *(() if depth_m is None else ((depth_m, mirrored),))):
        effects.add(maps, flags, lambda images: images.flip(3))
    if strength > 0:
        background, image = pair.chunk(2)  # views
        _paste(effects, background, image, mask, chosen, random, strength)
        _cast_shadow(effects, image, mask, chosen, random, strength)
        _light_unevenly(effects, image, chosen, random, strength)
        _move_camera(effects, pair, mask, depth_m, chosen, random, strength)
        _expose(effects, pair, chosen, random, strength)
        _record(effects, pair, chosen, random, strength)
    effects.apply()
    if strength > 0:
        pair.clamp_(0, 1)
    background, image = pair.chunk(2)
    return background, image, mask, depth_m


class _Effects:
    """Effects on flagged maps, collected first and applied in order; what they need is copied to the device at once.

    So a step has one copy of a few kilobytes, from pinned memory, and nothing waits for the device.
    """

    def __init__(self) -> None:
        self._effects: list[tuple[Tensor, Callable[..., Tensor], int]] = []  # maps, effect, number of its parts
        self._parts: list[Tensor] = []  # rows of the maps, then the values of these rows

    def add(self, maps: Tensor, flags: Tensor, effect: Callable[..., Tensor], *values: Tensor) -> None:
        """Replace the flagged ones of `maps` (n,C,H,W) by `effect(flagged maps, their rows of values)`, in place.

        Flags (n,) and values (n,...) are on the CPU. Most effects are rare, so it saves most of the time to compute
        only the flagged ones.
        """
        (rows,) = flags.nonzero(as_tuple=True)
        if len(rows):
            self._effects.append((maps, effect, 1 + len(values)))
            self._parts += [rows, *(value[rows] for value in values)]

    def apply(self) -> None:
        """Apply all effects, in the order in which they were added."""
        if not self._effects:
            return
        device = self._effects[0][0].device
        packed = torch.cat([part.reshape(-1).float() for part in self._parts])  # rows are small and so stay exact
        if device.type == "cuda":
            packed = packed.pin_memory()
        left = iter(packed.to(device, non_blocking=True).split([part.numel() for part in self._parts]))
        parts = (next(left).view(part.shape).to(part.dtype) for part in self._parts)
        for maps, effect, count in self._effects:
            rows, *values = (next(parts) for _ in range(count))
            maps[rows] = effect(maps[rows], *values)


def _column(values: Tensor) -> Tensor:
    """Reshape numbers (n,c) to (n,c,1,1), to broadcast over pixels."""
    return values[:, :, None, None]


def _smooth(maps: Tensor, size: int = 3) -> Tensor:
    """Average over size x size pixels; at the edges over those inside."""
    return F.avg_pool2d(maps, size, stride=1, padding=size // 2, count_include_pad=False)


def _paste(
    effects: _Effects,
    background: Tensor,
    image: Tensor,
    mask: Tensor,
    chosen: dict[str, Tensor],
    random: _RandomColumns,
    strength: float,
) -> None:
    """Change the edges, light and sharpness of the foreground."""
    every_row = torch.arange(len(mask))

    def harden(images: Tensor, rows: Tensor) -> Tensor:
        return torch.where(mask[rows] > 0, images, background[rows])

    effects.add(image, chosen["hard edge"], harden, every_row)

    def soften(images: Tensor, rows: Tensor) -> Tensor:
        inside = _smooth(mask[rows], 5)
        return images.lerp(_smooth(images), 4 * inside * (1 - inside) * min(1.0, strength))

    effects.add(image, chosen["feather"], soften, every_row)

    def fringe(images: Tensor, rows: Tensor, amount: Tensor, grey: Tensor) -> Tensor:
        inside = _smooth(mask[rows])
        return images + 4 * inside * (1 - inside) * _column(amount) * (_column(grey) - images)

    # what is left of another background is nearly black or nearly white
    grey = random.uniform(0, 1).round() * 0.8 + 0.1
    effects.add(image, chosen["fringe"], fringe, every_row, random.uniform(0, min(1.0, 0.6 * strength)), grey)

    def light(images: Tensor, rows: Tensor, gain: Tensor) -> Tensor:
        return images * (1 + _smooth(mask[rows]) * (_column(gain) - 1))

    stops = random.uniform(-0.6, 0.6) + random.uniform(-0.2, 0.2, 3)
    effects.add(image, chosen["foreground light"], light, every_row, 2 ** (strength * stops))

    def blur(images: Tensor, rows: Tensor, amount: Tensor) -> Tensor:
        return images.lerp(_smooth(images), mask[rows] * _column(amount))

    effects.add(image, chosen["foreground blur"], blur, every_row, random.uniform(0, min(1.0, strength)))


def _cast_shadow(
    effects: _Effects, image: Tensor, mask: Tensor, chosen: dict[str, Tensor], random: _RandomColumns, strength: float
) -> None:
    """Darken the floor about the feet: a Gaussian spot around the lowest row of the mask, outside the mask."""
    count, device, (height, width) = len(mask), mask.device, mask.shape[2:]
    y = torch.arange(height, device=device).view(1, 1, -1, 1)
    x = torch.arange(width, device=device).view(1, 1, 1, -1)

    def shade(images: Tensor, rows: Tensor, amount: Tensor, wide: Tensor, flat: Tensor, aside: Tensor) -> Tensor:
        inside = mask[rows]  # (n,1,H,W), all below (n,1,1,1)
        area = inside.sum((2, 3), keepdim=True)
        lines = inside.amax(3, keepdim=True)  # (n,1,H,1): which lines the mask has pixels in
        foot = (lines * y).amax(2, keepdim=True)
        half_width = area / lines.sum(2, keepdim=True).clamp(min=1) / 2
        middle = (inside * x).sum((2, 3), keepdim=True) / area.clamp(min=1) + _column(aside) * half_width
        across = (half_width * _column(wide)).clamp(min=1)
        spot = torch.exp(-(((x - middle) / across) ** 2)) * torch.exp(-(((y - foot) / (across * _column(flat))) ** 2))
        return images * (1 - _column(amount) * (area > 0) * (1 - inside) * spot)

    amount = random.uniform(0.1, 0.6) * strength
    shape = random.uniform(1, 2), random.uniform(0.15, 0.5), random.uniform(-1, 1)
    effects.add(image, chosen["contact shadow"], shade, torch.arange(count), amount.clamp(max=0.9), *shape)


def _light_unevenly(
    effects: _Effects, image: Tensor, chosen: dict[str, Tensor], random: _RandomColumns, strength: float
) -> None:
    """Multiply the image by a smooth field, as the light of the room has changed since the background was taken."""
    size = image.shape[2:]

    def uneven(images: Tensor, gain: Tensor) -> Tensor:
        field = F.interpolate(gain.view(-1, 1, 3, 3), size=size, mode="bilinear", align_corners=True)
        return images * field

    effects.add(image, chosen["uneven light"], uneven, 2 ** (strength * random.uniform(-0.25, 0.25, 9)))


def _move_camera(
    effects: _Effects,
    pair: Tensor,
    mask: Tensor,
    depth_m: Tensor | None,
    chosen: dict[str, Tensor],
    random: _RandomColumns,
    strength: float,
) -> None:
    """Zoom in on background, image, mask and depth; shift, turn and scale the background a little."""
    count, (height, width) = len(mask), mask.shape[2:]
    zoomed, moved = chosen["zoom"], chosen["misalignment"]
    zoom = torch.where(zoomed[:, None], 1 + 0.35 * strength * random.uniform(0, 1), 1.0)
    centre = random.uniform(-1, 1, 2) * (1 - 1 / zoom)
    pixels = torch.tensor([2 / width, 2 / height]) * strength  # a pixel is 2 / width of affine_grid's units
    shift = random.uniform(-1.2, 1.2, 2) * pixels  # (B,2)
    turn = random.uniform(-0.004, 0.004) * strength
    grow = random.uniform(-0.004, 0.004) * strength

    straight = _matrices(1 / zoom, torch.zeros_like(zoom), centre)
    crooked = _matrices((1 + grow) / zoom, turn / zoom, centre + shift / zoom)
    theta = torch.cat([torch.where(moved[:, None, None], crooked, straight), straight])

    def sample(images: Tensor, theta: Tensor, mode: str = "bilinear") -> Tensor:
        grid = F.affine_grid(theta, [len(images), 1, height, width], align_corners=False)
        return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)

    effects.add(pair, torch.cat([zoomed | moved, zoomed]), sample, theta)
    effects.add(mask, zoomed, lambda images, theta: (sample(images, theta) >= 0.5).float(), theta[count:])
    if depth_m is not None:

        def nearer(images: Tensor, theta: Tensor, zoom: Tensor) -> Tensor:
            return sample(images, theta, "nearest") / _column(zoom)

        effects.add(depth_m, zoomed, nearer, theta[count:], zoom)


def _matrices(scale: Tensor, turn: Tensor, centre: Tensor) -> Tensor:
    """Return affine matrices (n,2,3) of scale and small turn in radians, both (n,1), about a centre (n,2)."""
    rows = torch.stack([torch.cat([scale, -turn], 1), torch.cat([turn, scale], 1)], 1)
    return torch.cat([rows, centre[:, :, None]], 2)


def _expose(
    effects: _Effects, pair: Tensor, chosen: dict[str, Tensor], random: _RandomColumns, strength: float
) -> None:
    """Change exposure, white balance, saturation, contrast and gamma, of both alike, and a little of each by itself."""
    light, own = chosen["light"].repeat(2)[:, None], chosen["exposure"].repeat(2)[:, None]
    stops = random.uniform(-0.6, 0.6) + random.uniform(-0.25, 0.25, 3)
    own_stops = random.pairs(-0.1, 0.1) + random.pairs(-0.04, 0.04, 3)
    gain = 2 ** (strength * (light * stops.repeat(2, 1) + own * own_stops))
    saturation = (1 + strength * light * random.uniform(-0.5, 0.3).repeat(2, 1)).clamp(min=0)
    offset = strength * light * random.uniform(-0.06, 0.06).repeat(2, 1)
    bend = light * random.uniform(-0.4, 0.4).repeat(2, 1) + own * random.pairs(-0.05, 0.05)

    def expose(images: Tensor, gain: Tensor, saturation: Tensor, offset: Tensor, gamma: Tensor) -> Tensor:
        images = luma(images).lerp(images, _column(saturation)) * _column(gain) + _column(offset)
        return images.clamp_(1e-4, 1) ** _column(gamma)

    effects.add(pair, (light | own)[:, 0], expose, gain, saturation, offset, 2 ** (strength * bend))


def _record(
    effects: _Effects, pair: Tensor, chosen: dict[str, Tensor], random: _RandomColumns, strength: float
) -> None:
    """Blur, add sensor noise, compress; background and image by different amounts."""
    limit = min(1.0, strength)

    def blur(images: Tensor, amount: Tensor) -> Tensor:
        return images.lerp(_smooth(_smooth(images)), _column(amount))

    effects.add(pair, chosen["blur"].repeat(2), blur, random.pairs(0, limit))

    def noise(images: Tensor, sigma: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        grain = torch.empty(count, height, width, channels, device=images.device)
        generator = torch.Generator(images.device)
        for grain_of_one, number in zip(grain, seeds, strict=True):
            grain_of_one.normal_(generator=generator.manual_seed(int(number * 2**31)))
        # photons arrive one by one, so the variance grows with the light (shot noise)
        return images + grain.permute(0, 3, 1, 2) * (_column(sigma) * (0.3 + 0.7 * images.clamp(0, 1)).sqrt())

    sigma = strength * random.uniform(0, 0.05).repeat(2, 1) * random.pairs(0.7, 1.3)
    noisy = chosen["noise"].repeat(2)
    seeds = random.pairs(0, 1)[noisy, 0].tolist()
    effects.add(pair, noisy, noise, sigma)

    quality = 100 - limit * (100 - random.pairs(40, 95))
    effects.add(pair, chosen["jpeg"].repeat(2), lambda images, q: jpeg(images.clamp(0, 1), q[:, 0]), quality)


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Return images (B,3,H,W) in 0..1 as they look after JPEG compression at `quality` (B,), 1 to 100.

    Baseline JPEG (ITU-T T.81) with the usual defaults: JFIF's YCbCr, colour at half the size, 8x8 cosine transforms,
    Annex K's tables scaled by the rule of the Independent JPEG Group. Only the lossy steps are computed.
    """
    height, width = images.shape[2:]
    images = F.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate") * 255
    y = luma(images)
    colour = torch.cat([(images[:, 2:] - y) / 1.772, (images[:, :1] - y) / 1.402], 1)
    y = _quantise(y - 128, quality, _LUMA_STEPS) + 128
    colour = _quantise(F.avg_pool2d(colour, 2), quality, _CHROMA_STEPS)
    blue, red = F.interpolate(colour, scale_factor=2, mode="bilinear").split(1, 1)
    b, r = y + 1.772 * blue, y + 1.402 * red
    g = (y - 0.299 * r - 0.114 * b) / 0.587
    decoded = torch.cat([r, g, b], 1)[:, :, :height, :width]
    return decoded.round_().clamp_(0, 255) / 255


@lru_cache
def _on_device(steps: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Return a table of quantiser steps as (1,64) f4; copied to a device once, not at every step."""
    return torch.tensor(steps, device=device, dtype=torch.float32).view(1, 64)


def _quantise(maps: Tensor, quality: Tensor, steps: tuple[tuple[int, ...], ...]) -> Tensor:
    """Round the cosine transform of every 8x8 block of maps (B,C,H,W) to multiples of the steps at a quality (B,)."""
    count, channels, height, width = maps.shape
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None]
    table = ((_on_device(steps, maps.device) * scale + 50) / 100).floor().clamp(1, 255)[:, None]  # (B,1,64)
    k = torch.arange(8, device=maps.device, dtype=maps.dtype)
    cosine = torch.cos((2 * k + 1) * k[:, None] * (math.pi / 16)) / 2
    cosine[0] /= math.sqrt(2)
    transform = torch.kron(cosine, cosine)  # (64,64), orthonormal
    blocks = maps.reshape(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4).reshape(count, -1, 64)
    blocks = ((blocks @ transform.T / table).round_() * table) @ transform
    return blocks.view(count, channels, height // 8, width // 8, 8, 8).transpose(3, 4).reshape(maps.shape)
