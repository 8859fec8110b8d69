"""Names of every file and folder of a corpus.

Numbers in names start at 1, indices in tables at 0. The folders have the names of the original data set.
"""

CORPUS_JSON = "corpus.json"
PLAN = "plan.npy"
SOURCES = "sources.zarr"
DEPTH = "depth.zarr"
ROOMS = "rooms.zarr"
SOURCE_FOLDERS = ("bg", "fg", "fg_mask")
COMPOSITE_FOLDERS = ("bg_fg", "bg_fg_mask")
PICTURE_SUFFIXES = {"bg_fg": ".jpeg", "bg_fg_mask": "_mask.png", "bg_fg_depth": ".jpeg"}
FOLDERS = (*SOURCE_FOLDERS, *COMPOSITE_FOLDERS, "bg_fg_depth")


def background_name(background: int) -> str:
    """Return `bg001` for background 0."""
    return f"bg{background + 1:03d}"


def foreground_name(foreground: int, flip: bool) -> str:
    """Return `fg001` for foreground 0, `fg001_01` for its mirror image."""
    return f"fg{foreground + 1:03d}" + ("_01" if flip else "")


def foreground_mask_name(foreground: int, flip: bool) -> str:
    """Return `frg001` for foreground 0, `frg001_01` for its mirror image."""
    return "fr" + foreground_name(foreground, flip)[1:]


def composite_name(background: int, foreground: int, flip: bool, position: int) -> str:
    """Return a composite's name without ending: `bg001_fg001_001`, for the mirror image `bg001_fg001_01_001`."""
    return f"{background_name(background)}_{foreground_name(foreground, flip)}_{position + 1:03d}"


def depth_picture_name(background: int, foreground: int, flip: bool, position: int) -> str:
    """Return a depth view's name without ending, as in the original data set: `bg_001_fg_001_001_depth_map_001`."""
    mirrored = "_01" if flip else ""
    return f"bg_{background + 1:03d}_fg_{foreground + 1:03d}{mirrored}_{position + 1:03d}_depth_map_001"
