"""The names of a store's files and folders."""

INDEX_JSON = "index.json"
SHA256SUMS = "SHA256SUMS"
PACKING = "packing"
ZIP_SUFFIX = ".zip"


def shard_name(shard: int, shards: int) -> str:
    """Return `shard-00000-of-00006.zarr` for shard 0 of 6."""
    return f"shard-{shard:05d}-of-{shards:05d}.zarr"
