"""Estimate the depth of backgrounds as rooms, for corpora whose people stand on floors."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dsgen.camera import focal_px
from dsgen.corpus.rooms import Estimator, RoomDepth
from dsgen.errors import DsgenError, InvalidValueError

if TYPE_CHECKING:
    from dsgen.depth.labellers import DepthFunction, Labeller

_MOST_FED = 1024  # pixels along a side of a picture as it is given to the network, and of the depth it answers


def estimate_depth_with(
    weights: Path | None = None, model: "str | DepthFunction | None" = None, device: str = "auto"
) -> Estimator:
    """Return a function that estimates the depth of a background, for `composite`.

    The arguments are those of `label_corpus`. The network is loaded when the first background is estimated. Raises then
    as `label_corpus` does for weights that cannot be used, and `InvalidValueError` for a model that answers no metres.

    >>> import dsgen
    >>> people = dsgen.Parameters(place="floor")
    >>> dsgen.composite("corpus", parameters=people, estimate_depth=dsgen.estimate_depth_with())  # doctest: +SKIP
    """
    loaded: list[Labeller] = []

    def estimate(picture: np.ndarray, fov_deg: float) -> RoomDepth:
        if not loaded:
            from dsgen.depth.labellers import LabelOptions, make_labellers  # torch is needed only now
            from dsgen.parallel.devices import pick_devices

            options = LabelOptions(weights=weights, model=model, device=device, precision="float32")
            (labeller,) = make_labellers(options, pick_devices(device))
            if labeller.kind != "metric":
                raise InvalidValueError("--depth-weights", f"{labeller.name} answers no metres", "use a metric model")
            loaded.append(labeller)
        labeller = loaded[0]
        side = picture.shape[0]
        answered = min(side, _MOST_FED)
        focal = np.array([focal_px(fov_deg, side)])
        fed = labeller.feed_shape(side, side, float(focal[0]))
        batch = labeller.prepare(picture[None], fed)
        depth_m, _ = labeller(batch, (side, side), (answered, answered), focal)
        depth = np.asarray(depth_m[0], np.float32)
        if not np.isfinite(depth).all():
            raise DsgenError(
                labeller.name, "answers depth that is not finite", "the weights do not suit these pictures"
            )
        return RoomDepth(depth, labeller.name, labeller.sha256)

    return estimate
