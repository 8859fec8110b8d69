"""Embedded ICC profiles: colours are converted to sRGB, relative colorimetric, as a colour-managed viewer shows them.

A picture without a profile is taken to be sRGB, and one whose profile is sRGB within rounding keeps its bytes. A
profile that is damaged, or for another kind of picture, is named in the log, and the colours are read as sRGB.
"""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from dsgen.errors import reason_of
from dsgen.io.picture_files import note_once

_ROUNDING = 2  # by which the 8-bit results of profiles that all mean sRGB differ
_GREY_MODES = ("1", "L", "LA", "La")
_SPACE = slice(16, 20)  # of a profile's header


def convert_to_srgb(path: Path, image: Image.Image, profile: bytes | None, *, alpha: bool) -> Image.Image:
    """Convert a decoded picture of up to 8 bits, with its ICC profile, to sRGB of mode RGB, or RGBA if `alpha`."""
    plain = _convert(image, "RGBA" if alpha else "RGB")
    if not profile:
        return plain
    try:
        space = profile[_SPACE]
        if space == b"RGB " and image.mode != "CMYK":
            return _apply(_transform(profile, plain.mode, plain.mode), plain)
        if space == b"GRAY" and image.mode in _GREY_MODES:
            return _keep_alpha(_apply(_transform(profile, "L", "RGB"), _convert(image, "L")), plain)
        if space == b"CMYK" and image.mode == "CMYK":
            return _keep_alpha(_apply(_transform(profile, "CMYK", "RGB"), image), plain)
        reason = f"it is for {space.decode('ascii', 'replace').strip() or 'nothing'}, the picture is {image.mode}"
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        reason = reason_of(error)
    note_once(path, f"its colour profile cannot be used ({reason}); its colours are read as sRGB")
    return plain


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == mode else image.convert(mode)


def _keep_alpha(converted: Image.Image, plain: Image.Image) -> Image.Image:
    converted = _convert(converted, "RGB")
    if plain.mode == "RGBA":
        converted.putalpha(plain.getchannel("A"))
    return converted


def _apply(transform: ImageCms.ImageCmsTransform | None, image: Image.Image) -> Image.Image:
    return image if transform is None else transform.apply(image)


@lru_cache(64)
def _transform(profile: bytes, source: str, target: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform of a profile to sRGB between two modes; None if it changes nothing but for rounding."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        source,
        target,
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    if source == "CMYK":
        return transform
    probe = _convert(Image.fromarray(_probe() if target != "L" and source != "L" else _greys()), source)
    change = np.asarray(_convert(transform.apply(probe), "RGB")).astype(int) - np.asarray(_convert(probe, "RGB"))
    return transform if abs(change).max() > _ROUNDING else None


def _probe() -> np.ndarray:
    """Return the greys and a grid of colours, as a picture (1,n,3) u1."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    return np.concatenate([np.repeat(_greys()[..., None], 3, axis=2), grid], axis=1)


def _greys() -> np.ndarray:
    return np.arange(256, dtype=np.uint8)[None]
