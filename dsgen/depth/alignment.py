"""Metres from relative answers: a scale and a shift for each background."""

import numpy as np

from dsgen.corpus.corpus import Corpus
from dsgen.depth.labellers import Labeller
from dsgen.errors import InvalidValueError
from dsgen.units import MAX_DEPTH_M, MIN_DEPTH_M


class BackgroundAlignment:
    """Metres from relative answers: for every background the scale and shift that bring its own inverse depth closest.

    For the background without anything pasted on, s and t minimise the sum of (s r + t - 1 / m)^2 over its pixels,
    r the relative model's answer and m the reference's metres; a row's depth is 1 / (s r + t), within 0.1 m and the
    reference's farthest. Least squares in inverse depth are how MiDaS aligns (Ranftl et al., arXiv 1907.01341, eq. 4).
    """

    def __init__(self, corpus: Corpus, labeller: Labeller, reference: Labeller):
        self._corpus, self._labeller, self._reference = corpus, labeller, reference
        self._most_m = reference.max_depth_m or MAX_DEPTH_M
        self._known: dict[int, tuple[float, float]] = {}

    def _fitted(self, background: int) -> tuple[float, float]:
        if background not in self._known:
            image = self._corpus.background(background, self._corpus.label_size)[None]
            source, shape = image.shape[1:3], (self._corpus.size, self._corpus.size)
            relative, _ = self._labeller(self._labeller.prepare(image), source, shape)
            metres, _ = self._reference(self._reference.prepare(image), source, shape)
            r, inverse = relative.ravel().astype(float), 1 / metres.ravel().astype(float)
            good = np.isfinite(r) & np.isfinite(inverse)
            r, inverse = r[good], inverse[good]
            spread = r.var() if r.size else 0.0
            scale = ((r - r.mean()) * (inverse - inverse.mean())).mean() / spread if spread > 0 else 0.0
            if scale <= 0:
                raise InvalidValueError(
                    "--metric-reference",
                    f"background {background}: {self._labeller.name} and {self._reference.name} disagree about what "
                    "is near, no scale can be fitted",
                    "use another reference, or none",
                )
            self._known[background] = scale, inverse.mean() - scale * r.mean()
        return self._known[background]

    def __call__(self, backgrounds: np.ndarray, relative: np.ndarray) -> np.ndarray:
        """Turn relative answers (n,S,S) of rows with these backgrounds into metres."""
        scale, shift = np.array([self._fitted(b) for b in backgrounds.tolist()], np.float32).T[..., None, None]
        return 1 / (relative * scale + shift).clip(1 / self._most_m, 1 / MIN_DEPTH_M)
