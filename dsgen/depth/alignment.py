"""Metres from relative answers: a scale and a shift for each background."""

import numpy as np
import torch
from torch import Tensor

from dsgen.corpus.corpus import Corpus
from dsgen.depth.labellers import Labeller
from dsgen.errors import DsgenError
from dsgen.units import MAX_DEPTH_M, MIN_DEPTH_M


class BackgroundAlignment:
    """Turns relative answers into metres by a least-squares fit to a metric reference, once for each background.

    For the background without anything pasted on, s and t minimise the sum of (s r + t - 1 / m)^2 over its pixels,
    where r is the relative model's answer and m the reference's metres; a row's depth is then 1 / (s r + t), within
    0.1 m and the reference's largest depth. Least squares in inverse depth are how MiDaS aligns (Ranftl et al.,
    arXiv 1907.01341, eq. 4).

    `focal_lengths` (b,) are those of the backgrounds, in sides of a picture, for a reference with a canonical camera.
    """

    def __init__(
        self, corpus: Corpus, labeller: Labeller, reference: Labeller, focal_lengths: np.ndarray | None = None
    ):
        self._corpus, self._labeller, self._reference = corpus, labeller, reference
        self._focal_lengths = focal_lengths
        self._max_depth_m = reference.max_depth_m or MAX_DEPTH_M
        self._fits: dict[int, tuple[float, float]] = {}  # scale and shift of each background

    def __call__(self, backgrounds: np.ndarray, relative: Tensor) -> Tensor:
        """Return metres (n,S,S) f4 for relative answers (n,S,S) of rows with these backgrounds (n,)."""
        fits = np.array([self._fit(background) for background in backgrounds.tolist()], np.float32)  # (n,2)
        scale, shift = torch.from_numpy(fits.T[..., None, None]).to(relative.device)  # (n,1,1) each
        return 1 / (relative * scale + shift).clamp_(1 / self._max_depth_m, 1 / MIN_DEPTH_M)

    def _fit(self, background: int) -> tuple[float, float]:
        if background not in self._fits:
            image = self._corpus.background(background, self._corpus.label_size)[None]  # (1,L,L,3) u1
            lengths = self._focal_lengths
            focal_px = None if lengths is None else lengths[[background]] * image.shape[2]  # (1,)
            relative, metres = (
                self._estimate(labeller, image, focal_px) for labeller in (self._labeller, self._reference)
            )
            r, inverse = relative.ravel().astype(float), 1 / metres.ravel().astype(float)
            good = np.isfinite(r) & np.isfinite(inverse)
            r, inverse = r[good], inverse[good]
            variance = r.var() if r.size else 0.0
            scale = ((r - r.mean()) * (inverse - inverse.mean())).mean() / variance if variance > 0 else 0.0
            if scale <= 0:
                raise DsgenError(
                    "--metric-reference",
                    f"background {background}: {self._labeller.name} and {self._reference.name} disagree about what "
                    "is near, no scale can be fitted",
                    "use another reference, or none",
                )
            self._fits[background] = scale, inverse.mean() - scale * r.mean()
        return self._fits[background]

    def _estimate(self, labeller: Labeller, image: np.ndarray, focal_px: np.ndarray | None) -> np.ndarray:
        """Return a labeller's answer (1,S,S) f4 for an image (1,L,L,3) u1, at the stored size."""
        shape = self._corpus.size, self._corpus.size
        depth, _ = labeller(labeller.prepare(image), image.shape[1:3], shape, focal_px)
        return depth
