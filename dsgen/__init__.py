"""dsgen makes pictures labelled with masks and metric depth, and trains networks on them.

Everything public is here, and is imported when it is first used, so that `import dsgen` costs nothing:

    import dsgen

    dsgen.composite("corpus")                     # plan, composites, masks
    dsgen.label_corpus("corpus")                  # depth labels
    dsgen.pack("corpus", "shards")                # a store: Zarr shards
    dsgen.train("shards", "run")                  # a trained network
    for batch in dsgen.Loader("shards", "train", batch_size=32): ...

`dsgen.errors` has the errors a user can put right, all of them a `DsgenError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsgen.corpus.build import Parameters, composite
    from dsgen.corpus.composed import label_composed
    from dsgen.corpus.corpus import Corpus
    from dsgen.depth.label_corpus import label_corpus
    from dsgen.depth.label_folder import label_folder
    from dsgen.depth.rooms import estimate_depth_with
    from dsgen.errors import DsgenError
    from dsgen.evaluation.evaluate import evaluate
    from dsgen.evaluation.predict import predict
    from dsgen.integrity.repair import repair
    from dsgen.integrity.verify import verify
    from dsgen.store.dataset import StoreDataset
    from dsgen.store.export.export import export_store as export
    from dsgen.store.loader import Loader
    from dsgen.store.open_xarray import open_xarray
    from dsgen.store.packing import pack
    from dsgen.store.reader import Store
    from dsgen.training.fit import train
    from dsgen.training.settings import Settings
    from dsgen.training.unet import UNet

__version__ = "0.1.0"

__all__ = [
    "Corpus",
    "DsgenError",
    "Loader",
    "Parameters",
    "Settings",
    "Store",
    "StoreDataset",
    "UNet",
    "composite",
    "estimate_depth_with",
    "evaluate",
    "export",
    "label_composed",
    "label_corpus",
    "label_folder",
    "open_xarray",
    "pack",
    "predict",
    "repair",
    "train",
    "verify",
]

_HOMES = {
    "Corpus": "corpus.corpus",
    "DsgenError": "errors",
    "Loader": "store.loader",
    "Parameters": "corpus.build",
    "Settings": "training.settings",
    "Store": "store.reader",
    "StoreDataset": "store.dataset",
    "UNet": "training.unet",
    "composite": "corpus.build",
    "estimate_depth_with": "depth.rooms",
    "evaluate": "evaluation.evaluate",
    "export": "store.export.export:export_store",
    "label_composed": "corpus.composed",
    "label_corpus": "depth.label_corpus",
    "label_folder": "depth.label_folder",
    "open_xarray": "store.open_xarray",
    "pack": "store.packing",
    "predict": "evaluation.predict",
    "repair": "integrity.repair",
    "train": "training.fit",
    "verify": "integrity.verify",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dsgen' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(f"dsgen.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
