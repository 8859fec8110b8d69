"""How frames are varied while a depth network is trained: other cameras, pasted people, other light and film.

Depth is that of the canonical camera: a frame seen with a focal length of f pixels looks the same as one seen by the
canonical camera, of `focal_px`, whose depths are `focal_px` / f times as large (Metric3D, arXiv 2307.10984). What the
network answers depends on the picture alone, whichever camera took it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dsgen.depth.frames import Frame, Mixture, Person
from dsgen.errors import DsgenError, NotFoundError, raise_all
from dsgen.io.folders import attempt, list_files
from dsgen.parallel.prefetch import prefetch

Size = tuple[int, int]  # height and width in pixels

_STRIDE = 32  # by which networks halve pictures

_MOST_ZOOM = 2.2  # times the focal length at which the whole frame is seen
_LEAST_ZOOM = 0.85  # a border without depth appears below 1


@dataclass(frozen=True)
class Variety:
    """What frames are varied with: people to paste in, and photographs (h,w,3) u1 whose look some are given."""

    people: Sequence[Person] = ()
    styles: Sequence[np.ndarray] = ()


def read_styles(folder: Path) -> list[np.ndarray]:
    """Read the photographs of a folder, (h,w,3) u1 of at most 512 pixels a side; raise the errors of all together."""
    if not folder.is_dir():
        raise NotFoundError("--styles", f"{folder} is no folder, expected one with photographs", "check the path")
    found = [attempt(path) for path in list_files(folder)]
    raise_all(each for each in found if isinstance(each, DsgenError))
    pictures = [each for each in found if isinstance(each, np.ndarray)]
    if not pictures:
        raise NotFoundError("--styles", f"{folder} has no pictures, expected photographs", "check the path")
    return [_shrink(each, 512 / max(each.shape[:2])) for each in pictures]


def _shrink(rgb: np.ndarray, scale: float) -> np.ndarray:
    if scale >= 1:
        return rgb
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def batches(
    mixture: Mixture, size: int, focal_px: float, batch_size: int, variety: Variety, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, varied batches (B,3,h,w) u1 and (B,1,h,w) f4 of an epoch, made one batch ahead in a thread.

    Half of them are squares of `size` pixels, the others as many pixels in 4:3, upright or not. `focal_px` is the
    canonical focal length at this size.
    """
    rng = np.random.default_rng([seed, epoch])
    frames = mixture.draw(rng)
    starts = range(0, len(frames) - batch_size + 1, batch_size)
    shapes = _shapes(size)
    plan = [(start, shapes[rng.integers(len(shapes))]) for start in starts]

    def make(start: int, shape: Size) -> tuple[Tensor, Tensor]:
        pairs = [
            draw_pair(frames[n], shape, focal_px, variety, np.random.default_rng([seed, epoch, n]))
            for n in range(start, start + batch_size)
        ]
        image = torch.from_numpy(np.stack([pair[0] for pair in pairs])).permute(0, 3, 1, 2)
        return image, torch.from_numpy(np.stack([pair[1] for pair in pairs]))[:, None]

    with closing(prefetch((make(*each) for each in plan), 1)) as made:
        yield from made


def _shapes(size: int) -> list[Size]:
    """Return the shapes of batches, a square twice: multiples of 32 but for a square that is none itself."""
    short, long = (max(_STRIDE, _STRIDE * round(size * ratio / _STRIDE)) for ratio in (0.75**0.5, 0.75**-0.5))
    return [(size, size), (size, size), (short, long), (long, short)]


def draw_pair(
    frame: Frame, size: Size, focal_px: float, variety: Variety, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One training pair from a frame: a picture (h,w,3) u1, and its depth (h,w) f4 in metres of the canonical camera.

    Depth is 0, so invalid, where the frame has none.
    """
    rgb, depth_m = see(frame, size, focal_px, rng)
    people, styles = variety.people, variety.styles
    if people and rng.random() < 0.4:
        for _ in range(rng.integers(1, 3)):
            paste_person(rgb, depth_m, people[int(rng.integers(len(people)))], focal_px, rng)
    if rng.random() < 0.5:
        rgb, depth_m = rgb[:, ::-1], depth_m[:, ::-1]
    if styles and rng.random() < 0.5:
        rgb = restyle(rgb, styles[int(rng.integers(len(styles)))], rng)
    return photometric(np.ascontiguousarray(rgb), rng), np.ascontiguousarray(depth_m)


def see(frame: Frame, size: Size, focal_px: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return what a camera of random focal length and direction sees of a frame, as `draw_pair` does.

    Two of five views are near the canonical focal length, as pictures are fed; the others zoom in by any factor up to
    `_MOST_ZOOM`, which are things close by. Sides are stretched a little, as rounding to multiples of 32 does. Half
    the views are also turned, half are of a part of the frame beside its middle.
    """
    height, width = frame.rgb.shape[:2]
    whole = frame.focal_px * max(
        size[0] / height, size[1] / width
    )  # focal length at which the frame just fills the view
    if rng.random() < 0.4:
        focal = float(np.clip(focal_px * math.exp(rng.normal(0, 0.12)), _LEAST_ZOOM * whole, _MOST_ZOOM * whole))
    else:
        focal = whole * rng.uniform(1, _MOST_ZOOM)
    stretch = math.exp(np.clip(rng.normal(0, 0.03), -0.1, 0.1))
    after = _camera(focal * stretch, focal / stretch, size)
    if rng.random() < 0.5:
        return turn_camera(frame, after, size, rng.normal(0, (8, 8, 5)).clip(-16, 16), focal_px)
    zoom = (focal * stretch / frame.focal_px, focal / stretch / frame.focal_px)
    for axis in (0, 1):  # the part of the frame, by moving the centre of the view
        slack = max(0.0, zoom[axis] * (width, height)[axis] - (size[1], size[0])[axis]) / 2
        after[axis, 2] += rng.uniform(-slack, slack)
    return turn_camera(frame, after, size, np.zeros(3), focal_px)


def _camera(focal_x: float, focal_y: float, size: Size) -> np.ndarray:
    return np.array([[focal_x, 0, size[1] / 2 - 0.5], [0, focal_y, size[0] / 2 - 0.5], [0, 0, 1]])


def turn_camera(
    frame: Frame, after: np.ndarray, size: Size, angles_deg: np.ndarray, focal_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a frame as the camera `after` (3,3) sees it, turned by (pitch, yaw, roll), with canonical depth.

    A turn about the camera's centre moves pixels by K R K^-1, whatever the depth (Hartley and Zisserman, Multiple View
    Geometry, 8.4). Planar depth becomes z / (R r)_z, r = K^-1 p the ray of a pixel p of the turned camera, scaled to
    r_z = 1; then it is scaled to the canonical camera. Depth takes the nearest pixel and is 0 where the frame has none;
    the picture is mirrored there.
    """
    rgb, height, width = frame.rgb, *frame.rgb.shape[:2]
    focal = math.sqrt(after[0, 0] * after[1, 1])
    shrink = min(1.0, 1.15 * focal / frame.focal_px)  # of the picture, so that warping it does not alias
    if shrink < 0.9:
        rgb = cv2.resize(rgb, (round(width * shrink), round(height * shrink)), interpolation=cv2.INTER_AREA)
    pitch, yaw, roll = np.radians(angles_deg)
    turn = cv2.Rodrigues(np.array([0, 0, roll]))[0] @ cv2.Rodrigues(np.array([pitch, 0, 0]))[0]
    rays = turn @ cv2.Rodrigues(np.array([0, yaw, 0]))[0] @ np.linalg.inv(after)
    before = _camera(frame.focal_px, frame.focal_px, (height, width))
    fitted = np.diag([rgb.shape[1] / width, rgb.shape[0] / height, 1.0]) @ before
    fitted[:2, 2] = rgb.shape[1] / 2 - 0.5, rgb.shape[0] / 2 - 0.5
    shape, back = (size[1], size[0]), cv2.WARP_INVERSE_MAP
    seen = cv2.warpPerspective(
        rgb, fitted @ rays, shape, flags=cv2.INTER_LINEAR | back, borderMode=cv2.BORDER_REFLECT_101
    )
    seen_mm = cv2.warpPerspective(frame.depth_mm, before @ rays, shape, flags=cv2.INTER_NEAREST | back)
    x, y = np.arange(size[1], dtype=np.float32), np.arange(size[0], dtype=np.float32)[:, None]
    z = np.float32(rays[2, 0]) * x + np.float32(rays[2, 1]) * y + np.float32(rays[2, 2])
    seen_m = np.where(z > 0.1, seen_mm / np.maximum(z, 0.1), 0) * np.float32(0.001 * focal_px / focal)
    return seen, seen_m.astype(np.float32)


def paste_person(
    rgb: np.ndarray, depth_m: np.ndarray, person: Person, focal_px: float, rng: np.random.Generator
) -> None:
    """Paste a cut-out anywhere, in place: as far as its height says, but always before what it covers."""
    high, wide = rgb.shape[:2]
    height = int(high * rng.uniform(0.3, 0.85))
    cutout = person.rgba
    width = max(2, round(cutout.shape[1] * height / cutout.shape[0]))
    if width >= wide:
        return
    cutout = cv2.resize(cutout, (width, height), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        cutout = cutout[:, ::-1]
    top, left = rng.integers(0, high - height + 1), rng.integers(0, wide - width + 1)
    alpha = cutout[..., 3:].astype(np.float32) / 255
    window = rgb[top : top + height, left : left + width]
    behind = depth_m[top : top + height, left : left + width]
    solid = alpha[..., 0] >= 0.5
    valid = behind[solid & (behind > 0)]
    if valid.size == 0:
        return
    light = rng.uniform(0.5, 1.3)  # the cut-out was lit elsewhere
    window[:] = np.rint(window * (1 - alpha) + (cutout[..., :3] * light).clip(0, 255) * alpha).astype(np.uint8)
    behind[solid] = max(0.4, min(focal_px * person.height_m / height, 0.95 * float(np.percentile(valid, 10))))


def restyle(rgb: np.ndarray, style: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a picture (h,w,3) u1 that looks a little like a photograph, by one of two ways; shapes stay.

    Either its colours get the mean and spread of the photograph's in CIE Lab (Reinhard et al. 2001, "Color transfer
    between images"), or its lowest frequencies get the photograph's amplitudes (FDA, arXiv 2004.05498).
    """
    height, width = rgb.shape[:2]
    strength = rng.uniform(0.3, 1.0)
    style = cv2.resize(style, (width, height), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        lab, wanted = (cv2.cvtColor(each, cv2.COLOR_RGB2LAB).astype(np.float32) for each in (rgb, style))
        (mean, spread), (new_mean, new_spread) = (
            (each.mean((0, 1)), each.std((0, 1)) + 1e-3) for each in (lab, wanted)
        )
        moved = (lab - mean) * (new_spread / spread).clip(0.4, 2.5) + new_mean
        lab += strength * (moved - lab)
        return cv2.cvtColor(np.rint(lab.clip(0, 255)).astype(np.uint8), cv2.COLOR_LAB2RGB)
    spectrum, aim = (np.fft.rfft2(each.astype(np.float32), axes=(0, 1)) for each in (rgb, style))
    reach = rng.uniform(0.01, 0.06)  # share of the frequencies
    low = (np.abs(np.fft.fftfreq(height))[:, None] <= reach / 2) & (np.fft.rfftfreq(width)[None] <= reach / 2)
    size = np.abs(spectrum[low])
    spectrum[low] *= (size + strength * (np.abs(aim[low]) - size)) / np.maximum(size, 1e-3)
    changed = np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
    return np.rint(changed.clip(0, 255)).astype(np.uint8)


def photometric(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change what a camera changes and depth does not: light, exposure, colour, blur, noise, compression.

    One picture in eight stays as it is.
    """
    if rng.random() < 0.125:
        return rgb
    levels = np.linspace(0, 1, 256, dtype=np.float32)
    contrast, bright = rng.uniform(0.65, 1.4), rng.uniform(-0.12, 0.15)
    curves = [
        ((levels ** rng.uniform(0.6, 1.7)) * rng.uniform(0.8, 1.2) - 0.5) * contrast + 0.5 + bright for _ in range(3)
    ]
    gamma = rng.uniform(0.5, 1.7)
    table = np.stack(curves, axis=1).clip(0, 1) ** gamma
    out = cv2.LUT(rgb, np.rint(table * 255).astype(np.uint8)[None])
    # hue and saturation: a turn about the grey axis, and a pull towards it
    turn, pull = rng.uniform(-0.8, 0.8) * (rng.random() < 0.5), rng.uniform(0.0, 1.5)
    if rng.random() < 0.1:
        pull = 0.0
    c, t, k = math.cos(turn), (1 - math.cos(turn)) / 3, math.sin(turn) / math.sqrt(3)
    spin = np.array([[c + t, t - k, t + k], [t + k, c + t, t - k], [t - k, t + k, c + t]])
    matrix = (np.full((3, 3), (1 - pull) / 3) + pull * spin).astype(np.float32)
    out = cv2.transform(out, matrix)
    scale = max(rgb.shape[:2]) / 224
    if rng.random() < 0.15:
        out = _smear(out, rng.uniform(2, 7) * scale, rng.uniform(0, math.pi))
    elif rng.random() < 0.35:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.2 * scale + 0.3))
    elif rng.random() < 0.3:
        soft = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.6, 0.6 + 0.9 * scale))
        amount = rng.uniform(0.3, 1.5)
        out = cv2.addWeighted(out, 1 + amount, soft, -amount, 0)
    if rng.random() < 0.4:
        light = rng.uniform(0.5, 1.4, (3, 3, 3 if rng.random() < 0.4 else 1)).astype(np.float32)
        field = cv2.resize(light, (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_CUBIC)
        out = np.multiply(out, field.reshape(*rgb.shape[:2], -1)).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        noise = rng.standard_normal(out.shape, np.float32) * np.float32(255 * rng.uniform(0.005, 0.06))
        if rng.random() < 0.5:  # of the size of several pixels, as compressed video has it
            cv2.GaussianBlur(np.float32(1.7) * noise, (0, 0), rng.uniform(0.5, 1.0), dst=noise)
        out = (out + noise).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, code = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 95))])
        out = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
    return out


def _smear(rgb: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Blur a picture along a line of `length` pixels, as a moving camera does."""
    side = 2 * math.ceil(length / 2) + 1
    kernel = np.zeros((side, side), np.float32)
    dx, dy = math.cos(angle) * length / 2, math.sin(angle) * length / 2
    middle = side // 2
    ends = ((round(middle - dx), round(middle - dy)), (round(middle + dx), round(middle + dy)))
    cv2.line(kernel, *ends, 1.0)
    return cv2.filter2D(rgb, -1, kernel / kernel.sum())
