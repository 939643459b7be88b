"""A finished run read back: a stage's network with its best weights, and the images that it was trained for.

What is read is data: of the code that a file names, only kdx's own and torchvision's runs without being named again.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta
from torch import nn

from kdx.checkpoint import Metadata, load_checkpoint, load_weights
from kdx.data.dataset import Dataset
from kdx.data.imagefolder import load_imagefolder
from kdx.data.sources import load_cifar, load_digits, load_medmnist
from kdx.errors import KdxError, suggest
from kdx.files import as_record, read_record
from kdx.models.networks import NetworkSpec, build_network
from kdx.results import read_stages
from kdx.users_code import users_code

OURS = ("kdx.thin:", "kdx.vit:")  # networks that are built because a file says so
LOADERS: dict[str, Callable[..., Dataset]] = {
    "kdx.data.sources.load_cifar": load_cifar,
    "kdx.data.sources.load_digits": load_digits,
    "kdx.data.sources.load_medmnist": load_medmnist,
    "kdx.data.imagefolder.load_imagefolder": load_imagefolder,
}


class _Source(TypedDict, total=False):
    """The arguments of LOADERS, as a run's config keeps them."""

    _target_: str
    name: str
    size: Annotated[int, Meta(ge=1, le=16384)] | None
    root: str
    path: str
    in_memory_gb: Annotated[float, Meta(ge=0, le=1e9)]
    white: Annotated[float, Meta(gt=0, le=2**32)] | None


class _Data(TypedDict):
    source: dict[str, Any]


class _Config(TypedDict):
    dataset: _Data


class _StageConfig(TypedDict):
    """What `*_config.json` says of a stage."""

    config: _Config


@dataclass(frozen=True)
class StoredStage:
    """A stage's network in eval mode on the CPU, what its checkpoint says of it, and where it lies."""

    role: str
    network: nn.Module
    meta: dict[str, Any]
    checkpoint: Path
    classifies: bool = True  # False: no label entered its loss, and its classifier learnt nothing


def roles_of(run_dir: Path) -> list[str]:
    """The stages that a run's folder has, teachers first."""
    return list(read_stages(run_dir))


def load_stage(run_dir: Path, role: str, network: str | None = None) -> StoredStage:
    """The stage of a run; `network` names a user's own code, which is not run because a file says so."""
    stages = read_stages(run_dir)
    if role not in stages:
        raise KdxError(f"role={role}: choose {', '.join(stages)}{suggest(role, stages)}")
    checkpoint = run_dir / stages[role].checkpoint
    content = load_checkpoint(checkpoint)
    built = network_of(content.get("meta", {}), checkpoint, network)
    load_weights(built, content, checkpoint)
    return StoredStage(role, built, content["meta"], checkpoint, stages[role].classifies)


def network_of(meta: dict[str, Any], path: Path, network: str | None = None) -> nn.Module:
    """The network that a checkpoint's or an exported file's description names, in eval mode, with fresh weights."""
    known = as_record(meta, Metadata, path, "meta")
    try:
        name, classes, channels = known["network"], known["num_classes"], known["in_channels"]
        stem, names = known["stem"], known["class_names"]
    except KeyError as error:
        raise KdxError(f"{path}: says nothing of its {error.args[0]}: it was not written by this kdx") from error
    if len(names) != classes:
        raise KdxError(f"{path}: meta.class_names: {len(names)} names for num_classes={classes}")
    if ":" in name and not name.startswith(OURS) and network != name:
        raise KdxError(f"{path}: names code of yours, which is run only if you say so: network={name}")
    try:
        with users_code("its network cannot be built"):
            spec = NetworkSpec(
                name, classes, channels, stem=stem, image_size=_size(known), head=known.get("head", True)
            )
            return build_network(spec, download=False).eval()
    except KdxError as error:
        raise KdxError(f"{path}: {error}") from error


def _size(known: Metadata) -> tuple[int, int] | None:
    """Height and width of the images that the network takes, as far as its description tells."""
    resize, shape = known.get("preprocessing", {}).get("resize"), known.get("image_shape")
    return (resize, resize) if resize else None if shape is None else (shape[1], shape[2])


def load_data(stage: StoredStage, data_dir: str | None = None, data: str | None = None) -> Dataset:
    """The data set that the stage was trained on; `KdxError` where it is another by now.

    `data` is package.module:callable, a user's own code, which is not run because a file says so. It gets the arguments
    of the run's `dataset.source` where it is the one that the run used, else none.
    """
    logs = stage.checkpoint.parent.parent / "logs"
    configs = sorted(logs.glob("*_config.json"))
    if not configs:
        raise KdxError(f"{logs}: no *_config.json says where the images come from")
    source = read_record(configs[0], _StageConfig)["config"]["dataset"]["source"]
    as_record(source, _Source, configs[0], "config.dataset.source")
    target = _today(source.pop("_target_", None))
    if target not in LOADERS and data is None:
        named = ":".join(str(target).rsplit(".", 1))
        reason = f"code of yours that is not run because a file says so: say data={named} if it may run"
        raise KdxError(f"{configs[0]}: images come from {target}, {reason}")
    _fill_in(source, configs[0], data_dir)
    if data is None:
        found = _load(str(target), source, configs[0])
    else:
        found = _call_own(data, source if data.replace(":", ".") == target else {})
    if stage.meta["data_digest"] not in (found.digest, found.bytes_digest):  # the latter is kdx 0.1's
        raise KdxError(f"{stage.meta['dataset']}: these are other images than the {stage.role} was trained on")
    return found


def _load(target: str, source: dict[str, Any], config: Path) -> Dataset:
    try:
        return LOADERS[target](**source)
    except KdxError:
        raise
    except Exception as error:  # arguments that a file names may be any
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise KdxError(f"{config}: config.dataset.source: {target} fails with it ({reason})") from error


def _fill_in(source: dict[str, Any], config: Path, data_dir: str | None) -> None:
    """Say where the images lie on this machine; no download, no workers, no file of decoded pictures."""
    here = {"download": False, "num_workers": 0, "cache": "auto", "cache_dir": None}
    source |= {key: value for key, value in here.items() if key in source}
    for key, recorded in source.items():
        if isinstance(recorded, str) and (key in ("root", "path") or "${" in recorded):
            if data_dir is None and "${" in recorded and not recorded.startswith("${oc.env:KDX_DATA"):
                raise KdxError(f"{config}: the images lie in {recorded}: say where that is with data_dir=")
            source[key] = data_dir or (os.environ.get("KDX_DATA", "data") if "${" in recorded else recorded)


def _call_own(data: str, arguments: dict[str, Any]) -> Dataset:
    module, _, name = data.partition(":")
    nested = [key for key, value in arguments.items() if isinstance(value, dict) and "_target_" in value]
    if nested:
        raise KdxError(f"data={data}: its argument {nested[0]} is an object: name a callable that needs no argument")
    with users_code(f"data={data}: package.module:callable cannot be imported and called"):
        found = getattr(importlib.import_module(module), name)(**arguments)
    if not isinstance(found, Dataset):
        raise KdxError(f"data={data}: returned {type(found).__name__}, a kdx.data.Dataset is needed")
    return found


def _today(target: str | None) -> str | None:
    """The name that a loader has today; runs of kdx 0.1 named it before the files moved into rooms."""
    before = {"kdx.sources.": "kdx.data.sources.", "kdx.imagefolder.": "kdx.data.imagefolder."}
    room = next((old for old in before if target is not None and target.startswith(old)), None)
    return target if target is None or room is None else before[room] + target.removeprefix(room)
