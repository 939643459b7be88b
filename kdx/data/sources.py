"""Data sets by name: CIFAR, MedMNIST and scikit-learn's digits."""

import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from kdx.data.dataset import SPLITS, Dataset, check_labels, from_arrays
from kdx.data.download import fetch, md5_of
from kdx.data.pictures import check_regular
from kdx.errors import KdxError
from kdx.tasks import MULTI_LABEL

SPLIT_SEED = 0  # one split for every run: the run's seed must not move images between train and validation
CIFAR_VAL = 5000
MIRRORED = (
    "organamnist",
    "organcmnist",
    "organsmnist",
)  # have a left and a right kidney, lung and femoral head


def carve(labels: np.ndarray, size: int | float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, carved) of a stratified split that never changes, with every class on both sides.

    `size` is a count or a share.
    """
    from sklearn.model_selection import train_test_split

    counts = np.bincount(labels)
    count = math.ceil(size * len(labels)) if isinstance(size, float) else size
    classes = int((counts > 0).sum())
    if counts[counts > 0].min() < 2 or not classes <= count <= len(labels) - classes:
        raise KdxError(
            f"cannot carve {count} of {len(labels)} images off for validation: {classes} classes need 2 images each at "
            "least, one for either side"
        )
    kept, carved = train_test_split(np.arange(len(labels)), test_size=size, random_state=SPLIT_SEED, stratify=labels)
    carved = _with_every_class(carved, kept, labels)
    kept = _with_every_class(np.setdiff1d(np.arange(len(labels)), carved), carved, labels)
    return np.sort(kept), np.setdiff1d(np.arange(len(labels)), kept)


def _with_every_class(part: np.ndarray, rest: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A part of the images in which each class has one, as large as before: rounding may leave a rare class out.

    Its first image in the rest comes in the place of the last of the class with the most.
    """
    for label in np.setdiff1d(labels, labels[part]):
        most = np.bincount(labels[part]).argmax()
        out = part[labels[part] == most].max()
        part = np.append(part[part != out], rest[labels[rest] == label].min())
    return part


def load_digits() -> Dataset:
    """scikit-learn's 1,797 digits of 8x8 pixels in 17 grey levels: 1,257 train, 180 val, 360 test."""
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    images = (bunch.images * 255 / 16).round().astype(np.uint8)
    rest, test = carve(bunch.target, 360)
    train, val = carve(bunch.target[rest], 180)
    arrays = {
        split: (images[index], bunch.target[index])
        for split, index in (("train", rest[train]), ("val", rest[val]), ("test", test))
    }
    names = [str(name) for name in bunch.target_names]
    return from_arrays("digits", arrays, task="multi-class", class_names=names, mirrored=True)


def load_cifar(name: str, root: str, download: bool) -> Dataset:
    """CIFAR-10 or CIFAR-100 by torchvision (its checksums), 45,000 train, 5,000 val, 10,000 test."""
    import torchvision.datasets as tvd

    reader = {"cifar10": tvd.CIFAR10, "cifar100": tvd.CIFAR100}[name]
    parts = []
    for path in (Path(root) / reader.filename, *sorted((Path(root) / reader.base_folder).glob("*"))):
        if path.exists():
            check_regular(path)
    for is_train in (True, False):
        try:
            parts.append(reader(root, train=is_train))
            continue
        except RuntimeError:
            archive = Path(root) / reader.filename
            if not archive.exists():
                _refuse_other_batches(Path(root) / reader.base_folder, [*reader.train_list, *reader.test_list], name)
                _fetch(reader.url, archive, reader.tgz_md5, name, download)
            if md5_of(archive) != reader.tgz_md5:
                damaged = f"{archive} is damaged (its md5 is not {reader.tgz_md5}): delete it"
                raise KdxError(f"dataset={name}: {damaged}") from None
        try:
            parts.append(reader(root, train=is_train, download=True))  # unpacks the archive
        except (OSError, RuntimeError) as error:
            raise KdxError(f"dataset={name}: {archive} cannot be unpacked ({error}): delete it") from error
    train, test = parts
    labels = np.asarray(train.targets)
    kept, carved = carve(labels, CIFAR_VAL)
    arrays = {
        "train": (train.data[kept], labels[kept]),
        "val": (train.data[carved], labels[carved]),
        "test": (test.data, np.asarray(test.targets)),
    }
    return from_arrays(name, arrays, task="multi-class", class_names=train.classes)


def _refuse_other_batches(folder: Path, published: Sequence[tuple[str, str]], name: str) -> None:
    """What a user put there by hand is not overwritten by the published files."""
    for file, md5 in published:
        path = folder / file
        if path.exists() and md5_of(path) != md5:
            raise KdxError(f"dataset={name}: {path} is not the published file (its md5 differs): move the folder away")


def load_medmnist(name: str, size: int, root: str, download: bool) -> Dataset:
    """A 2-D set of MedMNIST v2 (28 px) or MedMNIST+ (64, 128, 224 px) with its official splits."""
    from medmnist import INFO

    info = INFO[name]
    path = medmnist_file(name, size, Path(root))
    suffix = "" if size == 28 else f"_{size}"
    if not path.exists():
        _fetch(info[f"url{suffix}"], path, info[f"MD5{suffix}"], name, download)
    check_regular(path)
    read = _read_npz(path, ("images", "labels"))
    arrays = {split: (images, labels) for split, (images, labels) in zip(SPLITS, read, strict=True)}
    task, names = _task_and_names(name)
    data = from_arrays(name, arrays, task=task, class_names=names, mirrored=name in MIRRORED)
    return replace(data, notes=_other_than_published(path, info[f"MD5{suffix}"]))


def _other_than_published(path: Path, md5: str) -> tuple[str, ...]:
    """A note where the file is not the published one: a user may have put another there, knowingly or not."""
    status = path.stat()
    actual = _md5_once(path, status.st_size, status.st_mtime_ns)
    if actual == md5:
        return ()
    return (f"{path.name} is not the published file: its md5 is {actual}, the published one's {md5}",)


@lru_cache
def _md5_once(path: Path, size: int, changed: int) -> str:
    """A file may have gigabytes: it is hashed again within a process only where it changed."""
    return md5_of(path)


def medmnist_file(name: str, size: int, root: Path) -> Path:
    """Where the file of a MedMNIST set of some size lies."""
    return root / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")


def _fetch(url: str, path: Path, md5: str, name: str, download: bool) -> None:
    by_hand = f"put {path.name} from {url} into data_dir={path.parent}"
    if not download:
        raise KdxError(f"dataset={name}: {path} is not there and download=false: {by_hand}")
    try:
        fetch(url, path, md5)
    except KdxError as error:
        raise KdxError(f"dataset={name}: the download failed ({error}): {by_hand}") from error


def medmnist_counts(name: str, path: Path) -> list[list[int]]:
    """Images of each class, or that have each label, in train, val and test of a file; its images are not read."""
    task, names = _task_and_names(name)
    labels = [check_labels(found, len(found), task, len(names), str(path)) for (found,) in _read_npz(path, ("labels",))]
    if task == MULTI_LABEL:
        return [found.sum(axis=0, dtype=np.int64).tolist() for found in labels]
    return [np.bincount(found, minlength=len(names)).tolist() for found in labels]


def _task_and_names(name: str) -> tuple[str, list[str]]:
    from medmnist import INFO

    info = INFO[name]
    task = MULTI_LABEL if info["task"].startswith(MULTI_LABEL) else info["task"]
    return task, [info["label"][str(number)] for number in range(len(info["label"]))]


def _read_npz(path: Path, parts: Sequence[str]) -> list[tuple[np.ndarray, ...]]:
    """Arrays of train, val and test, in this order."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return [tuple(file[f"{split}_{part}"] for part in parts) for split in SPLITS]
    except (OSError, TypeError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise KdxError(f"{path} is not a readable MedMNIST file ({error}): delete it or fetch it again") from error
