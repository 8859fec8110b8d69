"""Units and limits of depth, for every part of dsgen.

Depth is planar distance. In memory it is float32 metres; on disk it is uint16 millimetres, where 0 marks a pixel
without depth.
"""

import numpy as np

MIN_DEPTH_M = 0.1
MAX_DEPTH_M = 10.0
MAX_DEPTH_MM = 65_535


def to_millimetres(depth_m: np.ndarray) -> np.ndarray:
    """Round metres to uint16 millimetres, at most 65.535 m; 0 stays the mark of no depth, so the least is 1."""
    return np.rint(depth_m * 1000).clip(1, MAX_DEPTH_MM).astype(np.uint16)
