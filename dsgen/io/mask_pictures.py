"""Read masks from the kinds of picture that hold them; what is not clearly a mask of one foreground is refused.

- **Grey**, of any depth, and colours that are all grey: 0 and the largest value (255, or 65535 above 8 bits), or 0 and
  1. Soft edges between 0 and the largest value are cut at half, and so is the noise of JPEG and WebP.
- **Colours**: one colour on black is the foreground, soft edges included.
- **Palette**: of the indices 0 and 1, 1 is the foreground, unless its colour is black and that of 0 is not. Palettes of
  greys with other indices are read as grey.
- **Alpha**: an alpha channel or a colour key that is not the same everywhere is the mask, unless the colours are
  another mask.

Values such as class ids above 1 are never taken for a foreground. Colour profiles do not matter here.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dsgen.errors import DsgenError
from dsgen.io.colour_keys import key_alpha
from dsgen.io.picture_files import is_white_zero, open_picture, read_orientation, turn_upright

_MOST_SOFT, _FEW_SOFT = 0.5, 0.05  # shares of the pixels that soft edges may take: at most, and in any case
_LEAST_COLOUR = 64  # strongest channel of a colour that cannot be meant as a class id
_LISTED = 8


class _NoMaskError(Exception):
    """A picture is not clearly a mask; the message says why."""


def read_mask(path: Path) -> np.ndarray:
    """Decode a mask to (h,w) u1, 0 or 255, upright; raise `DsgenError` for a picture that is not clearly a mask."""
    with open_picture(path) as image:
        image.load()
        orientation = read_orientation(image)
        try:
            foreground = _find_foreground(path, image)
        except _NoMaskError as error:
            reason = f"{error}, expected a mask of 0 and 255, or of 0 and 1"
            raise DsgenError(path, reason, "save it as grey with 255 where the foreground is, else 0") from error
        mask = Image.fromarray(np.where(foreground, 255, 0).astype(np.uint8))
        return np.array(turn_upright(mask, orientation))


def _find_foreground(path: Path, image: Image.Image) -> np.ndarray:
    """Return where a decoded picture has foreground, (h,w) bool."""
    lossy = image.format in ("JPEG", "WEBP")
    alpha = _alpha(path, image)
    if image.mode == "P":
        plain: np.ndarray | Image.Image = image
    elif image.mode == "1" or image.mode.startswith("I;16") or image.mode in ("L", "I", "F"):
        plain = np.asarray(image)
    else:
        image.info.pop("transparency", None)
        straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        plain = np.asarray(image.convert(straight).convert("RGB"))
    if alpha is None or alpha.min() == alpha.max() == 255:
        return _from_plain(plain, image, lossy)
    if alpha.min() == alpha.max():
        raise _NoMaskError(f"alpha {alpha.max()} everywhere")
    return _from_alpha(alpha, plain, image, lossy)


def _alpha(path: Path, image: Image.Image) -> np.ndarray | None:
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return np.asarray(image.getchannel(image.getbands()[-1]))
    if image.mode == "P" and image.has_transparency_data:
        return np.asarray(image.convert("RGBA").getchannel("A"))
    return key_alpha(path, image)


def _from_plain(plain: np.ndarray | Image.Image, image: Image.Image, lossy: bool) -> np.ndarray:
    """Read a picture without alpha: a palette picture, grey values (h,w) of any type, or colours (h,w,3) u1."""
    if isinstance(plain, Image.Image):
        return _from_palette(plain)
    if plain.dtype == bool:
        return plain
    if plain.ndim == 3:
        return _from_colours(plain, lossy)
    return _from_grey(65535 - plain if is_white_zero(image) and plain.dtype.itemsize == 2 else plain, lossy)


def _from_alpha(alpha: np.ndarray, plain: np.ndarray | Image.Image, image: Image.Image, lossy: bool) -> np.ndarray:
    """Read the alpha, (h,w) u1; raise if the colours below what is opaque are a different mask."""
    foreground = _from_grey(alpha, lossy)
    colours = np.asarray(plain)[foreground]
    if (colours == colours[:1]).all():
        return foreground
    try:
        other = _from_plain(plain, image, lossy)
    except _NoMaskError:
        return foreground  # a cut-out with its colours
    if not (other == foreground).all():
        raise _NoMaskError("one mask in its alpha and another in its colours")
    return foreground


def _from_palette(image: Image.Image) -> np.ndarray:
    indices = np.asarray(image)
    used = np.unique(indices)
    palette = np.zeros((256, 3), np.uint8)
    colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    palette[: len(colours)] = colours
    if used[-1] <= 1:
        swapped = palette[0].any() and not palette[1].any()
        return indices == (0 if swapped else 1)
    found = palette[used]
    if (found == found[:, :1]).all() and len(np.unique(found[:, 0])) == len(used):
        return _from_grey(palette[indices][..., 0], lossy=False)
    raise _NoMaskError(f"palette indices up to {used[-1]} (found {_list(used)}), perhaps class ids")


def _from_colours(rgb: np.ndarray, lossy: bool) -> np.ndarray:
    """Read (h,w,3) u1: grey, or shades of one colour on black."""
    strongest = rgb.max(axis=2)
    if (strongest == rgb.min(axis=2)).all():
        return _from_grey(strongest, lossy)
    peak = int(strongest.max())
    colour = np.median(rgb[strongest >= peak - (16 if lossy else 0)], axis=0)
    shade = strongest[..., None] * (colour / colour.max())
    strays = (abs(rgb - shade) > (64 if lossy else 2)).any(axis=2).mean()
    if strays > (0.01 if lossy else 0):
        raise _NoMaskError("several colours, which are a photograph or class ids")
    if peak >= _LEAST_COLOUR:
        return _from_grey(np.rint(strongest * (255 / peak)).astype(np.uint8), lossy)
    return _from_grey(strongest, lossy)


def _from_grey(values: np.ndarray, lossy: bool) -> np.ndarray:
    """Read (h,w) values of any type: 0 and 1, 0 and the largest, or soft edges between 0 and the largest."""
    found = np.unique(values)
    top = 255 if found[-1] <= 255 else 65535
    if len(found) <= 2 and found[0] == 0 and found[-1] in (0, 1, top):
        return values > 0
    if len(found) == 1 and found[0] == top:
        return np.ones(values.shape, bool)
    if values.dtype in (np.uint8, np.uint16) and _is_soft(values, top, top // 16 if lossy else 0):
        return values > top // 2
    raise _NoMaskError(f"values up to {found[-1]}" if len(found) == 1 else f"values {_list(found)}")


def _is_soft(values: np.ndarray, top: int, noise: int) -> bool:
    """Whether all values but 0 and `top`, give or take `noise`, can be soft edges.

    These take half of the picture at most, and at most four times the room of what is `top`, as in no photograph.
    They lie well between the two or vary widely, and form no areas of one value, as class ids do.
    """
    between = (values > noise) & (values < top - noise)
    count, core = int(np.count_nonzero(between)), int(np.count_nonzero(values >= top - top // 16))
    if not core or count > max(_FEW_SOFT * values.size, min(_MOST_SOFT * values.size, 4 * core)):
        return False
    middle = np.count_nonzero(between & (values >= top // 8) & (values <= top - top // 8))
    if 4 * middle < count and len(np.unique(values[between])) < 16:
        return False
    native = np.ascontiguousarray(values)
    window = np.ones((3, 3), np.uint8)
    flat = between & (cv2.erode(native, window) == cv2.dilate(native, window))
    return 2 * int(np.count_nonzero(flat)) <= count


def _list(values: np.ndarray) -> str:
    shown = [f"{value:g}" for value in values[:_LISTED].tolist()]
    return ", ".join(shown) + (f", ... {values[-1]:g}" if len(values) > _LISTED else "")
