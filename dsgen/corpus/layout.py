"""Every path and file name of a corpus.

Numbers in names start at 1; indices in tables start at 0. The folders have the names of the original data set.
"""

CORPUS_JSON = "corpus.json"
PLAN = "plan.npy"
SOURCES = "sources.zarr"
DEPTH = "depth.zarr"
PICTURE_PARTS = ("bg_fg", "bg_fg_mask")
PARTS = ("bg", "fg", "fg_mask", "bg_fg", "bg_fg_mask", "bg_fg_depth")


def background_name(background: int) -> str:
    """Return `bg001` for background 0."""
    return f"bg{background + 1:03d}"


def foreground_name(foreground: int, flip: bool) -> str:
    """Return `fg001`, or `fg001_01` for the mirror image, for foreground 0."""
    return f"fg{foreground + 1:03d}" + ("_01" if flip else "")


def foreground_mask_name(foreground: int, flip: bool) -> str:
    """Return `frg001` or `frg001_01` for foreground 0."""
    return "fr" + foreground_name(foreground, flip)[1:]


def composite_name(background: int, foreground: int, flip: bool, position: int) -> str:
    """Return `bg001_fg001_001`, or `bg001_fg001_01_001` for the mirror image: a composite's name without ending."""
    return f"{background_name(background)}_{foreground_name(foreground, flip)}_{position + 1:03d}"


def depth_picture_name(background: int, foreground: int, flip: bool, position: int) -> str:
    """Return `bg_001_fg_001_001_depth_map_001`: the original's name of a depth view, without ending."""
    mirrored = "_01" if flip else ""
    return f"bg_{background + 1:03d}_fg_{foreground + 1:03d}{mirrored}_{position + 1:03d}_depth_map_001"
