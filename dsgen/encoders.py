"""Encoders of timm with weights pretrained on ImageNet: names, weights files of any layout, and normalisation.

An array of a file belongs to an array of the encoder by its name, or else by its place and shape in timm's whole
network of that name. Names are compared after any prefix that all of them share, with dots and underscores alike, as
timm's feature encoders write `stages_0` for the `stages.0` of the whole network.
"""

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from dsgen.errors import DsgenError, InvalidValueError, NotFoundError, reason_of
from dsgen.io.hub import reach_hub
from dsgen.io.torch_files import read_arrays

PRETRAINED = "pretrained"  # as a source of weights: timm's own
DSGEN_NETWORK = "dsgen_network"  # the metadata entry of weights files of dsgen
_COUNTER = "num_batches_tracked"  # of batch norms; older files lack it, and evaluation does not use it
_KINDS = ("weight", "bias", "running_mean", "running_var")
_HEADS = ("classifier", "fc", "head", "heads", "last_linear", "logits", "aux_logits", "head_dist")
_SHOWN = 3

State = Mapping[str, Tensor]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def check_encoder(name: str) -> None:
    """Raise `InvalidValueError` for what is no architecture of timm's own.

    Other names that timm takes, such as `hf-hub:...` and `local-dir:...`, make it connect to a hub or read a folder.
    """
    import timm

    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture) and (not tag or timm.models.is_model_pretrained(name)):
        return
    near = difflib.get_close_matches(architecture[:100], timm.list_models(), n=4, cutoff=0.5)
    like = f"like {', '.join(near)}" if near else "listed by timm.list_models()"
    reason = f"got a name that timm does not know, expected one {like}"
    raise InvalidValueError(f"encoder {name[:100]}", reason, "use another")


def input_statistics(name: str) -> Statistics:
    """Return the mean and the deviation of R, G and B, for pictures in 0..1, that the pretrained encoder expects.

    They may differ by tag: `tf_efficientnet_b0.ap_in1k` has other ones than `tf_efficientnet_b0.ns_jft_in1k`.

    >>> input_statistics("tf_efficientnet_lite0")
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    check_encoder(name)
    import timm

    expected: Any = timm.get_pretrained_cfg(name)
    return tuple(map(float, expected.mean)), tuple(map(float, expected.std))


class Normalise(nn.Module):
    """(x - mean) / deviation, channel by channel.

    It stands before the encoder rather than in its first weights, so that the zeros with which convolutions pad are
    the mean colour, as in pretraining; folded into the weights, they would be another colour at the border. Mean and
    deviation belong to a network's configuration and are no part of its state.
    """

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]):
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B,C,H,W) in 0..1 to the same shape, normalised."""
        return (image - self.mean) / self.deviation


def load_encoder_weights(
    encoder: nn.Module, name: str, source: str | Path, option: str = "--encoder-weights"
) -> tuple[str, str]:
    """Load pretrained weights into a feature encoder that was made from timm's `name`; return their name and SHA-256.

    `source` is a file of `torch.save` or safetensors, or the word `pretrained`, with which timm gets its own weights.
    The hash is that of the file, or of the arrays that timm got. The encoder may see other channels than the three of
    the file's: see `fit_channels`. Nothing is changed unless all fits.

    Raises `NotFoundError` for a file that does not exist, `DamagedError` for one that cannot be read,
    `InvalidValueError` for one of another network and for a name without pretrained weights, and `DsgenError` where
    timm cannot reach them.
    """
    check_encoder(name)
    if str(source) == PRETRAINED:
        title, arrays = _fetch(name, option)
        sha256 = _hash_arrays(arrays)
    else:
        path = Path(source)
        arrays = _read(path, option)
        title, sha256 = path.name, weights_sha256(path)
    state = _Matcher(encoder, name, arrays, option, title if str(source) == PRETRAINED else str(source)).match()
    encoder.load_state_dict(state, strict=False)
    return title, sha256


def weights_sha256(path: Path) -> str:
    """Return the SHA-256 of a weights file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fit_channels(weight: Tensor, channels: int) -> Tensor:
    """Turn the first convolution (O,3,h,w) for one RGB picture into one (O,channels,h,w) for n pictures side by side.

    Channels are 3 n, or n of grey pictures, which n below 3 and all that 3 does not divide are taken for. Each picture
    gets the weights divided by n, so that n equal pictures make the encoder answer as it does to one. Of grey pictures
    a weight is the sum over the colours, since R = G = B.
    """
    if channels % 3 == 0:
        pictures = channels // 3
        return weight.repeat(1, pictures, 1, 1) / pictures
    return weight.sum(1, keepdim=True).repeat(1, channels, 1, 1) / channels


def _read(path: Path, option: str) -> State:
    """Read the arrays of a file, wherever in it they are."""
    if not path.is_file():
        rule = f"expected a file of weights, or the word {PRETRAINED}"
        raise NotFoundError(option, f"{path} does not exist, {rule}", "check the path")
    metadata, content = read_arrays(path, "give another file of weights")
    if DSGEN_NETWORK in metadata:
        reason = f"{path} is a depth network of dsgen, whose encoder may see pictures in 0..1, expected one of ImageNet"
        raise InvalidValueError(option, reason, "give weights of timm's layout, without that metadata entry")
    arrays = next((each for each in _dictionaries(content) if each), None)
    if arrays is None:
        raise InvalidValueError(option, f"{path} holds no arrays by name, expected weights", "give another file")
    return arrays


def _dictionaries(content: Mapping[Any, Any], depth: int = 0) -> Iterator[dict[str, Tensor]]:
    """Yield the named arrays of a dictionary and, as of `state_dict` or `model`, of those in it."""
    yield {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if depth < 3:
        for value in content.values():
            if isinstance(value, Mapping):
                yield from _dictionaries(value, depth + 1)


def _fetch(name: str, option: str) -> tuple[str, State]:
    """Let timm get its own weights; return the name with its tag, and the arrays of the whole network."""
    import timm

    expected: Any = timm.get_pretrained_cfg(name)
    if not timm.models.is_model_pretrained(name) or not (expected.hf_hub_id or expected.url):
        reason = f"got {PRETRAINED}, but timm has no weights of {name}"
        raise InvalidValueError(option, reason, "give a file, or an --encoder that timm.list_pretrained() lists")
    title = f"{expected.architecture}.{expected.tag}" if expected.tag else name
    remedy = f"connect to the internet, or get the weights of timm's {title} elsewhere and give the file: {option} FILE"
    what = f"{option} {PRETRAINED}"
    if expected.hf_hub_id and not _is_cached(expected.hf_hub_id):
        reach_hub(what, remedy)
    try:
        return title, timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of whichever client timm uses
        raise DsgenError(what, f"timm cannot get the weights of {title} ({reason_of(error)})", remedy) from error


def _is_cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def _hash_arrays(arrays: State) -> str:
    digest = hashlib.sha256()
    for name, value in arrays.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _canonical(name: str) -> str:
    return name.replace("_", ".")


def _counts(state: State) -> dict[str, Tensor]:
    """Leave out the counters of batch norms."""
    return {name: value for name, value in state.items() if not name.endswith(_COUNTER)}


class _Matcher:
    """Finds which array of a file is which of an encoder's, or says why none are."""

    def __init__(self, encoder: nn.Module, name: str, arrays: State, option: str, source: str):
        self._name, self._option, self._source = name, option, source
        self._arrays = _counts(arrays)
        self._wanted = _counts(encoder.state_dict())
        self._whole = _counts(_whole_network(name))
        self._names = {_canonical(each): each for each in self._whole}
        self._heads = {_canonical(each) for each in (*_HEADS, *_classifiers(name))}
        keys = {each: _canonical(each.removeprefix("model.").removeprefix("body.")) for each in self._wanted}
        unknown = [each for each, key in keys.items() if key not in self._names]
        if unknown or len(set(keys.values())) != len(keys):
            reason = f"the feature encoder of timm's {name} has other arrays than the whole network ({_some(unknown)})"
            raise InvalidValueError(option, reason, "use another --encoder, or random weights")
        self._keys = keys  # canonical, by the encoder's names
        self._shapes = {key: tuple(self._whole[self._names[key]].shape) for key in keys.values()}

    def match(self) -> dict[str, Tensor]:
        """Return the encoder's state, without the counters."""
        found, fault = self._by_name()
        found = found or self._by_place()
        if found is None:
            self._refuse(f"fits neither by name ({fault}) nor by the order of its arrays and their shapes")
        state = {}
        for name, key in self._keys.items():
            value, wanted = found[key].to(torch.float32), self._wanted[name]
            if not value.isfinite().all():
                self._refuse(f"has values that are no finite numbers ({key})")
            if name.endswith("running_var") and (value < 0).any():
                self._refuse(f"has negative variances ({key}), so its arrays are in another order")
            if value.shape != wanted.shape and value.ndim == 4 and value.shape[1] == 3:
                value = fit_channels(value, wanted.shape[1])
            if value.shape != wanted.shape:
                self._refuse(f"has {key} of {tuple(value.shape)}, but the encoder's is {tuple(wanted.shape)}")
            state[name] = value.to(wanted.dtype)
        return state

    def _by_place(self) -> dict[str, Tensor] | None:
        """Take the arrays in order: those of timm's whole network, with or without its classifier, or the encoder's.

        None unless every shape is equal, and every `weight`, `bias` and so on is what it is called.
        """
        whole = {_canonical(name): tuple(value.shape) for name, value in self._whole.items()}
        heads = {_canonical(head) for head in _classifiers(self._name)}
        body = {key: shape for key, shape in whole.items() if not _is_below(key, heads)}
        found = list(self._arrays.items())
        for expected, checked in ((whole, body), (body, body), (self._shapes, self._shapes)):
            if len(found) != len(expected):
                continue
            pairs = list(zip(expected, found, strict=True))
            if all(
                (key not in checked or tuple(value.shape) == checked[key])
                and value.is_floating_point()
                and _same_kind(key, name)
                for key, (name, value) in pairs
            ):
                return {key: value for key, (_, value) in pairs}
        return None

    def _by_name(self) -> tuple[dict[str, Tensor] | None, str]:
        """Take the arrays by name; None, and what is missing, left over or of another shape, where they differ."""
        found = {_canonical(name): value for name, value in self._arrays.items()}
        names = {_canonical(name): name for name in self._arrays}
        counts = {prefix: sum(prefix + key in found for key in self._shapes) for prefix in self._prefixes(found)}
        prefix = max(counts, key=lambda each: counts[each])
        complete = [each for each, count in counts.items() if count == len(self._shapes)]
        if len(complete) > 1:
            first = next(iter(self._shapes))
            several = " and ".join(names[each + first] for each in complete[:2])
            self._refuse(f"holds several networks that fit, with {several}", "save one of them by itself")
        missing = [key for key in self._shapes if prefix + key not in found]
        differing = [
            key
            for key, shape in self._shapes.items()
            if (value := found.get(prefix + key)) is not None
            and (tuple(value.shape) != shape or not value.is_floating_point())
        ]
        left_over = [names[key] for key in found if self._is_strange(key, prefix)]
        faults = (
            ([self._names[key] for key in missing], "missing"),
            ([self._names[key] for key in differing], "of another shape"),
            (left_over, "left over"),
        )
        fault = "; ".join(f"{len(keys)} {each}: {_some(keys)}" for keys, each in faults if keys)
        return (None, fault) if fault else ({key: found[prefix + key] for key in self._shapes}, "")

    def _prefixes(self, found: State) -> list[str]:
        """List what may stand before the encoder's names: what stands before the name of one of the first of them."""
        prefixes = {"": None}
        for key in list(self._shapes)[:_SHOWN]:
            prefixes |= {each[: -len(key)]: None for each in found if each.endswith("." + key)}
        return list(prefixes)

    def _is_strange(self, key: str, prefix: str) -> bool:
        """Say whether an array of the file is of another network: none of timm's, no classifier, no other part."""
        if not key.startswith(prefix):
            return False
        rest = key.removeprefix(prefix)
        return rest not in self._names and not _is_below(rest.lstrip("."), self._heads)

    def _refuse(self, fault: str, remedy: str | None = None) -> NoReturn:
        reason = f"{self._source} with its {len(self._arrays):,} arrays, for timm's {self._name}, {fault}"
        raise InvalidValueError(
            self._option, reason, remedy or f"give weights of {self._name}, or the --encoder that they are of"
        )


def _is_below(key: str, parents: set[str]) -> bool:
    return any(key == parent or key.startswith(parent + ".") for parent in parents)


def _same_kind(key: str, name: str) -> bool:
    """Say whether two names do not contradict each other: as `weight` and `bias` do."""
    kinds = [
        next((kind for kind in _KINDS if _canonical(each).endswith(_canonical(kind))), None) for each in (key, name)
    ]
    return None in kinds or kinds[0] == kinds[1]


def _some(names: list[str]) -> str:
    return ", ".join(name[:100] for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _classifiers(name: str) -> tuple[str, ...]:
    """Return the names of the classifier, of which timm's distilled networks have two."""
    import timm

    expected: Any = timm.get_pretrained_cfg(name)
    classifier = expected.classifier or ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _whole_network(name: str) -> State:
    """Return the state of timm's whole network of that name, of shapes alone where it can be made without values."""
    import timm

    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False).state_dict()
    except (NotImplementedError, RuntimeError):  # some look at values while they are made
        return timm.create_model(name, pretrained=False).state_dict()
