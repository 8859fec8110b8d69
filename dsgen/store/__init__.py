"""A store: its Zarr schema, packed from a corpus or from pictures, read, exported, and fed to networks."""
