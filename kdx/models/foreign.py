"""Weights from a file that kdx did not write: found in it, and renamed as the network that takes them names them."""

import argparse
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdx.checkpoint import kind_of, load_weights, refuse_bomb
from kdx.errors import KdxError, suggest
from kdx.files import hash_path, verify_hash
from kdx.models.features import classifier_of

SAFETENSORS = ".safetensors"
SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin", SAFETENSORS)
WRAPPINGS = ("model", "state_dict", "model_state_dict", "net", "network", "ema_state_dict")
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
INNER = re.compile(r"(?<=\.)(module|_orig_mod)\.")  # of a part that was wrapped by itself
OLD_DENSENET = re.compile(r"(norm|relu|conv)\.([12])(?=\.)")  # torchvision renames so while it loads its own files
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # classifiers that only a training uses
COUNTER = "num_batches_tracked"  # which files before PyTorch 0.4.1 do not hold
STEPS = 4  # wrappings within wrappings, prefixes before prefixes


def is_kdx_file(path: Path) -> bool:
    """Whether a file is a checkpoint of kdx's own: it says its format. `KdxError` for what cannot be read at all."""
    return _of_kdx(path) is not None


def holds_average(path: Path) -> bool:
    """Whether a file is a checkpoint of kdx's own that gives an average of weights, see `checkpoint.weights_of`."""
    return bool((_of_kdx(path) or {}).get("average"))


def _of_kdx(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint of kdx's own, its tensors still in the file; None of any other file."""
    if path.suffix == SAFETENSORS:
        return None
    try:
        content = _loaded(path, mapped=zipfile.is_zipfile(path))
    except KdxError:
        if hash_path(path).exists():
            verify_hash(path)  # a checkpoint of ours that was damaged is told as such
        raise
    ours = isinstance(content, dict) and isinstance(content.get("format"), int) and "meta" in content
    return content if ours else None


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a state dict by name, from wherever they lie in a file; `key` names the place.

    Nothing in the file is run. `KdxError` for a file that is unreadable or holds no state dict, or several.
    """
    found = _safetensors(path) if path.suffix == SAFETENSORS else _loaded(path)
    for _ in range(STEPS):
        if isinstance(found, nn.Module) or not isinstance(found, Mapping):
            raise KdxError(f"{path}: holds a {type(found).__name__}, a state dict is needed")
        inner = _inner(found, key, path)
        if inner is None:
            break
        found, key = inner, None
    weights = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        raise KdxError(f"{path}: holds no weights{_choices(found)}")
    return weights


def load_foreign(network: nn.Module, weights: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Give a network all of the weights of a file; `KdxError` names the first that is missing, odd or of other shape.

    `name` is what the error calls the network.
    """
    own = network.state_dict()
    fitted = fit_names(weights, own)
    if not any(key.startswith(AUXILIARY) for key in own):
        fitted = {key: value for key, value in fitted.items() if not key.startswith(AUXILIARY)}
    fitted |= {key: own[key] for key in own if key.endswith(COUNTER) and key not in fitted}
    missing = [key for key in own if key not in fitted]
    odd = [key for key in fitted if key not in own]
    if missing or odd:
        there = f"{missing[0]} is missing ({len(missing)} of {len(own)} are)" if missing else ""
        more = f"{odd[0]} is not a weight of it ({len(odd)} are not)" if odd else ""
        raise KdxError(f"{path}: does not fit {name}: {'; '.join(filter(None, (there, more)))}")
    for key, value in own.items():
        if value.shape != fitted[key].shape:
            shapes = f"{_shape(fitted[key])}, {name} needs {_shape(value)}"
            raise KdxError(f"{path}: {key} has shape {shapes}{_hint(network, key, value, fitted[key])}")
    load_weights(network, {"model": fitted}, path)


def take_fitting(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> set[str]:
    """Give a network those of a file's weights that fit it by name, shape and kind; their names."""
    own = network.state_dict()
    fitted = fit_names(weights, own)
    taken = {
        key: fitted[key]
        for key, value in own.items()
        if key in fitted and value.shape == fitted[key].shape and kind_of(value) == kind_of(fitted[key])
    }
    load_weights(network, {"model": own | taken}, path)
    return set(taken)


def fit_names(weights: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The weights with prefixes taken off, such that the most of their names are wanted ones.

    A prefix that all wanted names have is put on: a network of one's own may wrap the one that was trained.
    """
    needed = {key for key in wanted if not key.endswith(COUNTER)}
    best = dict(weights)
    around = os.path.commonprefix(sorted(needed)).rpartition(".")
    for names in _renamed(list(weights), "".join(around[:2])):
        if len(needed & set(names)) > len(needed & best.keys()):
            best = dict(zip(names, weights.values(), strict=True))
    return best


def stem_of(weights: Mapping[str, Tensor]) -> str | None:
    """Which stem a ResNet's weights have, `small` or `imagenet`; None where its first convolution is not found."""
    name = min((key for key in weights if key.endswith("conv1.weight")), key=len, default=None)
    size = 0 if name is None or weights[name].ndim != 4 else weights[name].shape[-1]
    return {3: "small", 7: "imagenet"}.get(size)


def _renamed(names: list[str], around: str) -> Iterator[list[str]]:
    """A file's names, changed in all ways that wrappers change them, the least change first; none twice alike."""
    changes: list[Callable[[str], str]] = [lambda name, p=p: name.removeprefix(p) for p in PREFIXES]  # type: ignore[misc]
    changes += [lambda name: INNER.sub("", name), lambda name: OLD_DENSENET.sub(r"\1\2", name)]
    changes.append(lambda name: around + name)
    seen, todo = {tuple(names)}, [names]
    for _ in range(STEPS):
        following = []
        for known in todo:
            for change in changes:
                new = list(map(change, known))
                if len(set(new)) == len(new) and tuple(new) not in seen:
                    seen.add(tuple(new))
                    following.append(new)
                    yield new
        todo = following


def _inner(content: Mapping[str, Any], key: str | None, path: Path) -> Any:
    """What lies under `key`, or under the first usual name; None where the content itself is a state dict."""
    if key is not None:
        if key not in content:
            raise KdxError(f"{path}: has no key '{key}'{suggest(key, map(str, content))}{_choices(content)}")
        return content[key]
    if any(isinstance(value, Tensor) and str(name).count(".") for name, value in content.items()):
        return None
    return next((content[name] for name in WRAPPINGS if isinstance(content.get(name), Mapping)), None)


def _choices(content: Mapping[str, Any]) -> str:
    """Where in a file's content weights may lie."""
    named = [str(key) for key, value in content.items() if isinstance(value, Mapping)]
    return f"; choose checkpoint_key={', '.join(named[:10])}" if named else ""


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise KdxError(f'{path} needs the package safetensors: pip install -e ".[export]"') from None
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise KdxError(f"{path}: not a readable safetensors file ({' '.join(str(error).split())[:200]})") from error


def _loaded(path: Path, mapped: bool = False) -> Any:
    """torch.load of tensors, plain values, numpy's numbers and a command line's arguments; no code of a file runs."""
    if path.stat().st_size == 0:
        raise KdxError(f"{path}: is empty")
    if zipfile.is_zipfile(path):
        refuse_bomb(path)
    elif _begins_as_zip(path):
        raise KdxError(f"{path}: not a readable checkpoint: the end of the file is missing")
    try:
        with torch.serialization.safe_globals(_plain_types()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError and more for one cause
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is not None:
            reason = f"holds objects of {code[1]}, whose code is not run"
            raise KdxError(f"{path}: {reason}; save its weights alone: torch.save(net.state_dict(), FILE)") from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise KdxError(f"{path}: not a readable checkpoint, is it whole? ({reason})") from error


def _begins_as_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _plain_types() -> list[Any]:
    """What training scripts leave beside the weights, and what holds nothing but values: scores and arguments."""
    numbers = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    scalar, rebuild = np._core.multiarray.scalar, np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    old = [(scalar, "numpy.core.multiarray.scalar"), (rebuild, "numpy.core.multiarray._reconstruct")]
    return [argparse.Namespace, np.dtype, np.ndarray, scalar, rebuild, *old, *numbers]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "of a number"


def _hint(network: nn.Module, key: str, own: Tensor, given: Tensor) -> str:
    """Why a weight may have another shape: another number of classes, or of channels."""
    if key.startswith(f"{classifier_of(network)[0]}.") and own.shape[1:] == given.shape[1:]:
        return f": it was trained for {given.shape[0]} classes, the data set has {own.shape[0]}"
    if own.ndim == 4 and own.shape[:1] + own.shape[2:] == given.shape[:1] + given.shape[2:] and own.shape[1] in (1, 3):
        grey = "; dataset.normalize=imagenet gives grey images three" if given.shape[1] == 3 else ""
        return f": it was trained on images of {given.shape[1]} channels{grey}"
    return ""
