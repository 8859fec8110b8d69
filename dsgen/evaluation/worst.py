"""Draw the rows a network answers worst: pictures, masks, where they differ, and depths, true and predicted."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from dsgen.io.atomic import write_bytes
from dsgen.io.images import encode_png
from dsgen.store.reader import Store
from dsgen.training.batches import prepare
from dsgen.training.checkpoint import DEPTH, MASK, Trained
from dsgen.units import MIN_DEPTH_M

_PANEL = 160  # side of a panel in pixels, including the line beside it
_HEAD, _CAPTION, _GAP = 40, 20, 16
_CAPTIONED = {"iou": "IoU", "abs_rel": "AbsRel"}


def draw_worst(out: Path, trained: Trained, store: Store, worst: list[dict[str, Any]], size: int) -> None:
    """Draw rows fed at `size` pixels, two per line, as a PNG; the caption of each has its number, name and scores.

    `worst` are entries of `scores.json`. Depth is coloured on one scale in metres, white where there is no label.
    """
    from matplotlib import colormaps
    from PIL import Image, ImageDraw, ImageFont

    samples = [_panels(trained, store, entry["row"], size) for entry in worst]
    far_m = max([MIN_DEPTH_M, *(float(maps[name].max()) for maps in samples for name in maps if "depth" in name)])
    titles = list(samples[0])
    across = min(2, len(samples))
    width, height = len(titles) * _PANEL + _GAP, _PANEL + _CAPTION
    sheet = np.full((_HEAD + -(-len(samples) // across) * height, across * width, 3), 255, np.uint8)
    corners = [(_HEAD + k // across * height, k % across * width) for k in range(len(samples))]
    for (top, left), maps in zip(corners, samples, strict=True):
        for k, (title, panel) in enumerate(maps.items()):
            if "depth" in title:
                colours = colormaps["turbo_r"](panel / far_m)[..., :3] * 255
                panel = np.where(panel[..., None] > 0, colours, 255).astype(np.uint8)
            shrinks = len(panel) > _PANEL and title != "error"  # averages of its colours mean nothing
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
            shown = cv2.resize(panel, (_PANEL - 2, _PANEL - 2), interpolation=interpolation)
            x, y = left + k * _PANEL, top + _CAPTION
            sheet[y : y + _PANEL - 2, x : x + _PANEL - 2] = shown

    picture = Image.fromarray(sheet)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    pen.text((4, 2), "error: red is predicted and not true, blue is true and not predicted", "black", font)
    for k, title in enumerate(titles * across):
        x = k // len(titles) * width + k % len(titles) * _PANEL
        pen.text((x, 20), f"{title}, 0 to {far_m:.1f} m" if title == "depth" else title, "black", font)
    for (top, left), entry in zip(corners, worst, strict=True):
        known = [f"{title} {entry[name]:.3f}" for name, title in _CAPTIONED.items() if entry.get(name) is not None]
        pen.text((left, top + 3), f"row {entry['row']}, {entry['composite']}: {', '.join(known)}", "black", font)
    write_bytes(out, encode_png(np.asarray(picture)))


def _panels(trained: Trained, store: Store, row: int, size: int) -> dict[str, np.ndarray]:
    """Return the panels of a row by title: (s,s,3) u1, depth (s,s) float metres."""
    sample = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in store.read(row, row + 1).items()}
    background, image, _, _ = prepare(sample, size, trained.device)
    logits, depth_m = trained.answer(background, image)
    _, _, mask, truth_m = prepare(sample, logits.shape[-1], trained.device)

    def picture(maps: Tensor) -> np.ndarray:
        shown = (maps[0].permute(1, 2, 0).cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.repeat(shown, 3 // shown.shape[2], axis=2))

    panels = {"background": picture(background)} if "background" in sample else {}
    panels["composite"] = picture(image)
    if MASK in sample:
        panels["mask"] = picture(mask)
    if MASK in trained.answers:
        predicted = (logits > 0).float()
        panels["predicted mask"] = picture(predicted)
        if MASK in sample:
            both = mask * predicted
            panels["error"] = picture(torch.cat([predicted, both, mask], dim=1))
    if truth_m is not None:
        panels["depth"] = truth_m[0, 0].cpu().numpy()
    if DEPTH in trained.answers:
        panels["predicted depth"] = depth_m[0, 0].cpu().numpy()
    return panels
