"""Make clean composites look like photographs of people pasted on photographs of rooms, in batches, on any device.

A network that saw only noise-free composites learns that whatever differs from the background in the last bit is the
foreground. Two real shots of one room differ everywhere: by noise, by compression, by exposure, by part of a pixel. A
person cut out of another photograph has soft, hard or fringed edges, and the light and sharpness of that other place.

The order is that of the real thing: paste, cast shadows, point the camera, expose, record. `SHARES` says how often.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgen.training.unet import luma

MIRRORED = 0.5  # share of the samples, at any strength
TOUCHED = 0.7  # share of the samples that get anything else; the rest stays clean
SHARES = {  # of the touched samples
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
_COLUMNS = 80  # random numbers a sample

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


class _Numbers:
    """A table of random numbers with a row for every sample, handed out column by column."""

    def __init__(self, table: Tensor):
        self.table, self.used = table, 0

    def uniform(self, low: float, high: float, columns: int = 1) -> Tensor:
        """Return (B,columns) numbers in low..high."""
        values = self.table[:, self.used : self.used + columns]
        self.used += columns
        if values.shape[1] < columns:
            raise IndexError("the table of random numbers is too narrow")
        return low + (high - low) * values

    def pairs(self, low: float, high: float, columns: int = 1) -> Tensor:
        """Return (2B,columns) numbers in low..high, those for the backgrounds first."""
        return torch.cat([self.uniform(low, high, columns), self.uniform(low, high, columns)])

    def chance(self, share: float) -> Tensor:
        """Return (B,) truths of which `share` are true."""
        return self.uniform(0, 1)[:, 0] < share


@torch.no_grad()
def augment(
    background: Tensor,
    image: Tensor,
    mask: Tensor,
    depth_m: Tensor | None,
    dice: torch.Generator,
    strength: float = 1.0,
    *,
    rank: int = 0,
    ranks: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the batch as a camera might have seen it: pictures in 0..1, channels last, mask 0 or 1, depth in metres.

    Takes pictures (B,3,H,W), mask and depth (B,1,H,W) or no depth, all on one device, and leaves them as they are.
    Light, colour, mirroring and zoom are common to background and image, and mask and depth move along; shadows and
    edges are the image's; noise, blur, JPEG, and small differences in exposure and position are each picture's own.
    Depth takes the nearest pixel, 0 stays the mark of none, and enlarging by z divides it by z, as if the camera had
    moved in: a network that is not told the focal length assumes one (Yin et al., Metric3D, ICCV 2023).

    `strength` scales every change; at 0 half the samples are mirrored and nothing else happens. All random numbers
    come from `dice`, a generator on the CPU, so the same dice give the same batch on the same device. With `ranks`
    processes whose dice are equal, sample k here is sample `rank + k * ranks` of the whole batch and changes as it
    would have there.
    """
    table = torch.rand(len(image) * ranks, _COLUMNS, generator=dice)[rank::ranks]
    numbers = _Numbers(table)
    mirrored = numbers.chance(MIRRORED)
    touched = numbers.chance(TOUCHED * min(1.0, strength))
    chosen = {name: touched & numbers.chance(share) for name, share in SHARES.items()}

    pair, mask = torch.cat([background, image]), mask.clone()
    pair = pair.contiguous(memory_format=torch.channels_last)
    depth_m = None if depth_m is None else depth_m.clone()
    both = mirrored.repeat(2)
    for maps, flags in ((pair, both), (mask, mirrored), *(() if depth_m is None else ((depth_m, mirrored),))):
        _change(maps, flags, lambda some: some.flip(3))
    if strength > 0:
        _paste(pair, mask, chosen, numbers, strength)
        _aim(pair, mask, depth_m, chosen, numbers, strength)
        _expose(pair, chosen, numbers, strength)
        _record(pair, chosen, numbers, strength)
        pair.clamp_(0, 1)
    background, image = pair.chunk(2)
    return background, image, mask, depth_m


def _change(maps: Tensor, flags: Tensor, change: Callable[..., Tensor], *values: Tensor) -> None:
    """Replace the flagged ones of `maps` by `change(them, their rows of values)`, in place.

    Flags and values are on the CPU; working on a part saves most of the time, as most changes are rare.
    """
    (rows,) = flags.nonzero(as_tuple=True)
    if len(rows):
        there = rows.to(maps.device)
        maps[there] = change(maps[there], *(value[rows].to(maps.device) for value in values))


def _column(values: Tensor) -> Tensor:
    """Give numbers (n,c) the shape (n,c,1,1)."""
    return values[:, :, None, None]


def _smooth(maps: Tensor, size: int = 3) -> Tensor:
    """Average over size x size pixels, at the edges over those that are there."""
    return F.avg_pool2d(maps, size, stride=1, padding=size // 2, count_include_pad=False)


def _paste(pair: Tensor, mask: Tensor, chosen: dict[str, Tensor], numbers: _Numbers, strength: float) -> None:
    """Change edges, light and sharpness of the foreground, its shadow, and the light in the room since."""
    count, device = len(mask), mask.device
    background, image = pair[:count], pair[count:]
    where = torch.arange(count)

    def here(rows: Tensor) -> Tensor:
        return mask[rows]

    _change(image, chosen["hard edge"], lambda some, rows: torch.where(here(rows) > 0, some, background[rows]), where)

    def soften(some: Tensor, rows: Tensor) -> Tensor:
        inside = _smooth(here(rows), 5)
        return some.lerp(_smooth(some), 4 * inside * (1 - inside) * min(1.0, strength))

    _change(image, chosen["feather"], soften, where)

    def fringe(some: Tensor, rows: Tensor, amount: Tensor, grey: Tensor) -> Tensor:
        inside = _smooth(here(rows))
        return some + 4 * inside * (1 - inside) * _column(amount) * (_column(grey) - some)

    # what was left of another background is nearly black or nearly white
    grey = numbers.uniform(0, 1).round() * 0.8 + 0.1
    _change(image, chosen["fringe"], fringe, where, numbers.uniform(0, min(1.0, 0.6 * strength)), grey)

    def light(some: Tensor, rows: Tensor, gain: Tensor) -> Tensor:
        return some * (1 + _smooth(here(rows)) * (_column(gain) - 1))

    stops = numbers.uniform(-0.6, 0.6) + numbers.uniform(-0.2, 0.2, 3)
    _change(image, chosen["foreground light"], light, where, 2 ** (strength * stops))

    def blur(some: Tensor, rows: Tensor, amount: Tensor) -> Tensor:
        return some.lerp(_smooth(some), here(rows) * _column(amount))

    _change(image, chosen["foreground blur"], blur, where, numbers.uniform(0, min(1.0, strength)))

    height, width = mask.shape[2:]
    y = torch.arange(height, device=device).view(1, 1, -1, 1)
    x = torch.arange(width, device=device).view(1, 1, 1, -1)

    def shade(some: Tensor, rows: Tensor, amount: Tensor, wide: Tensor, flat: Tensor, aside: Tensor) -> Tensor:
        inside = here(rows)
        area = inside.sum((2, 3), keepdim=True)
        lines = inside.amax(3, keepdim=True)
        foot = (lines * y).amax(2, keepdim=True)
        half = area / lines.sum(2, keepdim=True).clamp(min=1) / 2
        middle = (inside * x).sum((2, 3), keepdim=True) / area.clamp(min=1) + _column(aside) * half
        across = (half * _column(wide)).clamp(min=1)
        spot = torch.exp(-(((x - middle) / across) ** 2)) * torch.exp(-(((y - foot) / (across * _column(flat))) ** 2))
        return some * (1 - _column(amount) * (area > 0) * (1 - inside) * spot)

    amount = numbers.uniform(0.1, 0.6) * strength
    shape = numbers.uniform(1, 2), numbers.uniform(0.15, 0.5), numbers.uniform(-1, 1)
    _change(image, chosen["contact shadow"], shade, where, amount.clamp(max=0.9), *shape)

    def uneven(some: Tensor, gain: Tensor) -> Tensor:
        field = F.interpolate(gain.view(-1, 1, 3, 3), size=(height, width), mode="bilinear", align_corners=True)
        return some * field

    _change(image, chosen["uneven light"], uneven, 2 ** (strength * numbers.uniform(-0.25, 0.25, 9)))


def _aim(
    pair: Tensor, mask: Tensor, depth_m: Tensor | None, chosen: dict[str, Tensor], numbers: _Numbers, strength: float
) -> None:
    """Enlarge a part of everything; shift, turn and scale the background a little."""
    count, (height, width) = len(mask), mask.shape[2:]
    zoomed, moved = chosen["zoom"], chosen["misalignment"]
    zoom = torch.where(zoomed[:, None], 1 + 0.35 * strength * numbers.uniform(0, 1), 1.0)
    centre = numbers.uniform(-1, 1, 2) * (1 - 1 / zoom)
    pixels = torch.tensor([2 / width, 2 / height]) * strength  # a pixel is 2 / width of affine_grid's units
    shift = numbers.uniform(-1.2, 1.2, 2) * pixels
    turn = numbers.uniform(-0.004, 0.004) * strength
    grow = numbers.uniform(-0.004, 0.004) * strength

    straight = _matrices(1 / zoom, torch.zeros_like(zoom), centre)
    crooked = _matrices((1 + grow) / zoom, turn / zoom, centre + shift / zoom)
    theta = torch.cat([torch.where(moved[:, None, None], crooked, straight), straight])

    def sample(some: Tensor, theta: Tensor, mode: str = "bilinear") -> Tensor:
        grid = F.affine_grid(theta, [len(some), 1, height, width], align_corners=False)
        return F.grid_sample(some, grid, mode=mode, padding_mode="border", align_corners=False)

    _change(pair, torch.cat([zoomed | moved, zoomed]), sample, theta)
    _change(mask, zoomed, lambda some, theta: (sample(some, theta) >= 0.5).float(), theta[count:])
    if depth_m is not None:

        def nearer(some: Tensor, theta: Tensor, zoom: Tensor) -> Tensor:
            return sample(some, theta, "nearest") / _column(zoom)

        _change(depth_m, zoomed, nearer, theta[count:], zoom)


def _matrices(scale: Tensor, turn: Tensor, centre: Tensor) -> Tensor:
    """Return affine matrices (n,2,3) of scale and small turn in radians, both (n,1), about a centre (n,2)."""
    rows = torch.stack([torch.cat([scale, -turn], 1), torch.cat([turn, scale], 1)], 1)
    return torch.cat([rows, centre[:, :, None]], 2)


def _expose(pair: Tensor, chosen: dict[str, Tensor], numbers: _Numbers, strength: float) -> None:
    """Change exposure, white balance, saturation, contrast and gamma, alike for both pictures and a little for each."""
    light, own = chosen["light"].repeat(2)[:, None], chosen["exposure"].repeat(2)[:, None]
    stops = numbers.uniform(-0.6, 0.6) + numbers.uniform(-0.25, 0.25, 3)
    own_stops = numbers.pairs(-0.1, 0.1) + numbers.pairs(-0.04, 0.04, 3)
    gain = 2 ** (strength * (light * stops.repeat(2, 1) + own * own_stops))
    saturation = (1 + strength * light * numbers.uniform(-0.5, 0.3).repeat(2, 1)).clamp(min=0)
    offset = strength * light * numbers.uniform(-0.06, 0.06).repeat(2, 1)
    bend = light * numbers.uniform(-0.4, 0.4).repeat(2, 1) + own * numbers.pairs(-0.05, 0.05)

    def expose(some: Tensor, gain: Tensor, saturation: Tensor, offset: Tensor, gamma: Tensor) -> Tensor:
        some = luma(some).lerp(some, _column(saturation)) * _column(gain) + _column(offset)
        return some.clamp_(1e-4, 1) ** _column(gamma)

    _change(pair, (light | own)[:, 0], expose, gain, saturation, offset, 2 ** (strength * bend))


def _record(pair: Tensor, chosen: dict[str, Tensor], numbers: _Numbers, strength: float) -> None:
    """Blur, add a sensor's noise, compress; both pictures of a sample, each in its own measure."""
    most = min(1.0, strength)

    def blur(some: Tensor, amount: Tensor) -> Tensor:
        return some.lerp(_smooth(_smooth(some)), _column(amount))

    _change(pair, chosen["blur"].repeat(2), blur, numbers.pairs(0, most))

    def noise(some: Tensor, sigma: Tensor, seed: Tensor) -> Tensor:
        count, channels, height, width = some.shape
        grain = torch.empty(count, height, width, channels, device=some.device)
        generator = torch.Generator(some.device)
        for one, start in zip(grain, seed[:, 0].tolist(), strict=True):
            one.normal_(generator=generator.manual_seed(int(start * 2**31)))
        # photons come one by one: the variance grows with the light
        return some + grain.permute(0, 3, 1, 2) * (_column(sigma) * (0.3 + 0.7 * some.clamp(0, 1)).sqrt())

    sigma = strength * numbers.uniform(0, 0.05).repeat(2, 1) * numbers.pairs(0.7, 1.3)
    _change(pair, chosen["noise"].repeat(2), noise, sigma, numbers.pairs(0, 1))

    quality = 100 - most * (100 - numbers.pairs(40, 95))
    _change(pair, chosen["jpeg"].repeat(2), lambda some, q: jpeg(some.clamp(0, 1), q[:, 0]), quality)


def jpeg(pictures: Tensor, quality: Tensor) -> Tensor:
    """Return pictures (B,3,H,W) in 0..1 as they look after JPEG compression at `quality` (B,), 1 to 100.

    Baseline JPEG (ITU-T T.81) as files have it by default: JFIF's YCbCr, colour at half the size, 8x8 cosine
    transforms, Annex K's tables scaled by the rule of the Independent JPEG Group. Only what loses something is done.
    """
    height, width = pictures.shape[2:]
    pictures = F.pad(pictures, (0, -width % 16, 0, -height % 16), mode="replicate") * 255
    y = luma(pictures)
    colour = torch.cat([(pictures[:, 2:] - y) / 1.772, (pictures[:, :1] - y) / 1.402], 1)
    y = _quantise(y - 128, quality, _LUMA_STEPS) + 128
    colour = _quantise(F.avg_pool2d(colour, 2), quality, _CHROMA_STEPS)
    blue, red = F.interpolate(colour, scale_factor=2, mode="bilinear").split(1, 1)
    b, r = y + 1.772 * blue, y + 1.402 * red
    g = (y - 0.299 * r - 0.114 * b) / 0.587
    decoded = torch.cat([r, g, b], 1)[:, :, :height, :width]
    return decoded.round_().clamp_(0, 255) / 255


def _quantise(maps: Tensor, quality: Tensor, steps: tuple[tuple[int, ...], ...]) -> Tensor:
    """Round the cosine transform of every 8x8 block of maps (B,C,H,W) to multiples of the steps at that quality."""
    count, channels, height, width = maps.shape
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None]
    table = torch.tensor(steps, device=maps.device, dtype=maps.dtype).view(1, 64)
    table = ((table * scale + 50) / 100).floor().clamp(1, 255)[:, None]  # (B,1,64)
    k = torch.arange(8, device=maps.device, dtype=maps.dtype)
    cosine = torch.cos((2 * k + 1) * k[:, None] * (math.pi / 16)) / 2
    cosine[0] /= math.sqrt(2)
    transform = torch.kron(cosine, cosine)  # (64,64), orthonormal
    blocks = maps.reshape(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4).reshape(count, -1, 64)
    blocks = ((blocks @ transform.T / table).round_() * table) @ transform
    return blocks.view(count, channels, height // 8, width // 8, 8, 8).transpose(3, 4).reshape(maps.shape)
