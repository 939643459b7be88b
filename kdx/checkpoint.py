"""Checkpoints: whole files with a checksum beside them, read without running their content."""

import io
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch
import torchvision
from msgspec import Meta
from torch.nn.parameter import is_lazy

import kdx
from kdx.errors import DamagedError, KdxError
from kdx.files import as_record, hash_path, make_way, verify_hash, write_with_hash

FORMAT = 1
LATEST = "latest.pth"
BEST_PATTERN = "best_*.pth"
CHECKED = {"epoch", "validation", "meta"}  # of every checkpoint, before anything in it is used

Finite = Annotated[float, Meta(ge=-1e308, le=1e308)]


class Preparation(TypedDict):
    """How pixels become what the network takes: mean and std a channel (0-1), the size to resize to."""

    mean: Annotated[list[Finite], Meta(min_length=1, max_length=1024)]
    std: Annotated[list[Annotated[float, Meta(gt=0, le=1e308)]], Meta(min_length=1, max_length=1024)]
    resize: Annotated[int, Meta(ge=1, le=16384)] | None
    white: NotRequired[Annotated[float, Meta(gt=0, le=2**32)] | None]


class Metadata(TypedDict, total=False):
    """What a checkpoint says of its network and data, and an exported file's card likewise."""

    dataset: str
    data_digest: str
    task: str
    num_classes: Annotated[int, Meta(ge=1)]
    class_names: Annotated[list[str], Meta(min_length=1, max_length=100_000)]
    network: Annotated[str, Meta(min_length=1, max_length=1000)]
    stem: str
    in_channels: Annotated[int, Meta(ge=1, le=1024)]
    image_shape: Annotated[list[Annotated[int, Meta(ge=1, le=16384)]], Meta(min_length=3, max_length=3)]
    preprocessing: Preparation
    head: bool
    classifies: bool  # False: no label enters its loss, and its classifier learns nothing
    role: str
    fingerprint: str
    guide_fingerprint: str | list[str] | None
    versions: dict[str, Any]
    surroundings: dict[str, Any]


@dataclass(kw_only=True)
class _Content:
    """What every checkpoint may hold beside its weights."""

    epoch: Annotated[int, Meta(ge=0, le=2**53)] = 0
    validation: dict[str, float] = field(default_factory=dict)
    meta: Metadata = field(default_factory=Metadata)


@dataclass(kw_only=True)
class _Best:
    epoch: Annotated[int, Meta(ge=1, le=2**53)]
    value: Finite | None = None  # kdx 0.1 told accuracy and loss instead
    file: Annotated[str, Meta(pattern=r"^best_\w+_-?[0-9.]+\.pth$")]  # a plain name: it is read and written


@dataclass(kw_only=True)
class _Progress:
    history: list[dict[str, float | int | None]]
    best: _Best | None


@dataclass(kw_only=True)
class _Snapshot(_Content):
    """What a checkpoint to resume from holds as well; a snapshot holds the best checkpoint of its day."""

    progress: _Progress
    best_checkpoint: _Content | None = None


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "kdx": kdx.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
    }


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (plain values and tensors) with its checksum, so that a crash leaves the old or the new state."""
    write_checkpoint(path, serialised(content))


def serialised(content: dict[str, Any]) -> io.BytesIO:
    """The bytes of a checkpoint, a copy that later steps leave alone."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)  # to memory first: a full disk is then reported as such
    return buffer


def write_checkpoint(path: Path, buffer: io.BytesIO) -> None:
    """Write what `serialised` made, with its checksum."""
    with buffer.getbuffer() as view:  # let go also after an error: a buffer that is still seen cannot be freed
        write_with_hash(path, view)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; `KdxError` for a missing, damaged or foreign file."""
    return load_hashed(path)[0]


def check_snapshot(path: Path, content: dict[str, Any]) -> None:
    """`DamagedError` unless what the checkpoint says of its training's progress can be resumed from."""
    known = {key: _as_plain(content[key]) for key in content.keys() & {*CHECKED, "progress", "best_checkpoint"}}
    as_record(known, _Snapshot, path)


def load_hashed(path: Path, *, known: str | None = None, mapped: bool = False) -> tuple[dict[str, Any], str]:
    """`load_checkpoint`, and the file's sha256, which must be the `known` one if there is one.

    `mapped` leaves tensors in the file until somebody reads them.
    """
    if not path.is_file():
        raise DamagedError(f"{path}: no such checkpoint")
    sha256 = verify_hash(path)
    if known not in (None, sha256):
        raise DamagedError(f"{path}: damaged (its sha256 is not the one in the index)")
    refuse_bomb(path)
    content = _load(path, mapped)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise DamagedError(f"{path}: not a kdx checkpoint: a dict with the key 'model' is needed")
    if not isinstance(content.get("average", {}), dict):
        raise DamagedError(
            f"{path}: not a kdx checkpoint: 'average' is a {type(content['average']).__name__}, not a dict"
        )
    made_in = content.get("format")
    if isinstance(made_in, int) and made_in > FORMAT:
        raise KdxError(f"{path}: checkpoint format {made_in} is of a newer kdx, this one reads format {FORMAT}")
    if made_in != FORMAT:
        raise DamagedError(f"{path}: checkpoint format {made_in}, this kdx reads format {FORMAT}")
    as_record({key: _as_plain(content[key]) for key in content.keys() & CHECKED}, _Content, path)
    return content, sha256


def _load(path: Path, mapped: bool) -> Any:
    """torch.load; `DamagedError` where the file's content is at fault, `KdxError` where the machine is, just now."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError and more for one cause
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else '-'}"
        if isinstance(error, MemoryError | OSError) or "allocate memory" in str(error):
            raise KdxError(f"{path}: cannot be read just now ({reason}); it was left as it is, try again") from error
        raise DamagedError(f"{path}: not a readable checkpoint ({reason})") from error


class _Tensor:
    """Stands for a tensor where plain values are checked: its own operations cost time and may raise anything."""


def _as_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_plain(part) for part in value]
    return _Tensor() if isinstance(value, torch.Tensor) else value


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, then its checksum; a folder of such a name, which is not ours, is only set aside."""
    for file in (path, hash_path(path)):
        make_way(file)
        file.unlink(missing_ok=True)


def weights_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights that a checkpoint's scores are of: the average where its training keeps one, else the network's own.

    Only who resumes that training needs the network's own weights beside an average.
    """
    return content.get("average") or content["model"]


def load_weights(network: torch.nn.Module, content: dict[str, Any], path: Path) -> None:
    """Strictly load a checkpoint's weights; float16, bfloat16 and float64 become the network's own type.

    `KdxError` for other names or shapes, for tensors of another kind than the network's (int8, bool or complex weights
    would load, as other numbers), and for weights that are not finite once they are loaded.
    """
    weights = weights_of(content)
    for key, own in network.state_dict().items():
        if key in weights and not is_lazy(own) and kind_of(own) != kind_of(weights[key]):
            raise KdxError(f"{path}: {key} holds {kind_of(weights[key])}, the network needs {kind_of(own)}")
    try:
        network.load_state_dict(weights, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise KdxError(f"{path}: its weights do not fit the network ({reason})") from error
    for key, own in network.state_dict().items():  # as loaded: a finite float64 may be too large for float32
        if isinstance(own, torch.Tensor) and own.is_floating_point() and not torch.isfinite(own).all():
            raise KdxError(f"{path}: weights that are not finite in {key}")


def kind_of(value: Any) -> str:
    """What a tensor holds, as far as one may be copied into another without becoming other numbers."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if value.layout is not torch.strided:
        return f"{value.dtype} ({value.layout})"
    if value.is_floating_point():
        return "floating-point numbers"
    return str(value.dtype) if value.is_complex() or value.dtype is torch.bool else "whole numbers"


def check_metadata(path: Path, actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """`KdxError` that names each fact in which what a checkpoint says of itself differs from what is needed."""
    if not actual:
        raise KdxError(f"{path}: says nothing of its network, classes and data set (no 'meta'): it cannot be checked")
    wrong = [
        f"{key} is {_brief(actual.get(key))}, needed {_brief(value)}"
        for key, value in expected.items()
        if actual.get(key) != value
    ]
    if wrong:
        raise KdxError(f"{path} does not fit: " + "; ".join(wrong))


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def refuse_bomb(path: Path, factor: int = 4) -> None:
    """`DamagedError` for contents much larger than the file, an attack or damage: torch stores tensors uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except OSError as error:
        raise KdxError(f"{path}: cannot be read just now ({error}); it was left as it is, try again") from error
    except (zipfile.BadZipFile, ValueError) as error:
        raise DamagedError(f"{path}: not a readable checkpoint ({error})") from error
    if claimed > factor * path.stat().st_size:
        raise DamagedError(f"{path}: claims {claimed} bytes in a file of {path.stat().st_size}: refused")
