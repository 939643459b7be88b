"""Which files of a user's folder are pictures of which split and class, and what there is that is not read."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdx.data.pictures import SUFFIXES
from kdx.errors import KdxError
from kdx.text import first_names

NAMED = 5  # folders that a note names
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"}


@dataclass
class Listing:
    """The pictures of one split with their classes, and how many files were passed over."""

    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)  # files by suffix
    deeper: int = 0  # pictures in folders below the class's own
    outside: int = 0  # pictures in no class's folder

    @property
    def classes(self) -> np.ndarray:
        return np.asarray(self.labels, dtype=np.int64)


def find_splits(path: str) -> dict[str, Path]:
    """The folders of train, test and, where there is one, val; also under the other names that are usual for them."""
    root = Path(path)
    folders = _folders(root)
    found = {}
    for split, names in SPLITS.items():
        there = [folder for folder in folders if folder.name.lower() in names]
        if len(there) > 1:
            both = ", ".join(str(folder) for folder in there)
            raise KdxError(f"dataset=imagefolder: {both}: which of them is {split}? Move the other out of {root}")
        if there:
            found[split] = there[0]
    for needed in ("train", "test"):
        if needed not in found:
            inner = [folder for folder in folders if {"train", "test"} <= {inner.name for inner in _folders(folder)}]
            hint = f": set dataset.path={inner[0]}" if len(inner) == 1 else ""
            raise KdxError(
                f"dataset=imagefolder: {root / needed} is missing{hint}; dataset.path={path} must hold "
                "train/<class>/*, test/<class>/* and, if you have it, val/<class>/*"
            )
    return found


def find_classes(train: Path) -> list[str]:
    """The classes: the folders in train."""
    names = [folder.name for folder in _folders(train)]
    if len(names) < 2:
        raise KdxError(f"dataset=imagefolder: {train} holds {len(names)} class folders, at least 2 are needed")
    return names


def list_split(folder: Path, class_names: list[str]) -> Listing:
    """The pictures of a split, sorted by class and path; a class's folder may hold further folders."""
    known = set(class_names)
    unknown = [inner for inner in _folders(folder) if inner.name not in known]
    if unknown:
        raise KdxError(f"{unknown[0]}: this class has no folder in train")
    listing = Listing()
    listing.outside = sum(_is_picture(name) for name in _entries(folder) if not os.path.isdir(folder / name))
    for label, name in enumerate(class_names):
        for path, depth in _files(folder / name) if os.path.isdir(folder / name) else ():
            if not _is_picture(path.name):
                listing.unread[_suffix(path)] += 1
                continue
            listing.paths.append(path)
            listing.labels.append(label)
            listing.deeper += depth > 0
    if not listing.paths:
        unread = f"; not read: {suffixes(listing.unread)}" if listing.unread else ""
        raise KdxError(f"{folder}: no image in any class folder{unread}")
    return listing


def pictures_below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The pictures of a folder and its folders, sorted, and how many other files there are, by suffix."""
    files = [path for path, _ in _files(folder)]
    unread = Counter(_suffix(path) for path in files if not _is_picture(path.name))
    return [path for path in files if _is_picture(path.name)], unread


def folders_beside(path: str) -> tuple[Path, ...]:
    """The folders next to a folder's splits."""
    used = {name for names in SPLITS.values() for name in names}
    return tuple(folder for folder in _folders(Path(path)) if folder.name.lower() not in used)


def beside_note(folders: Iterable[Path], unlabelled: str | None = None) -> Iterator[str]:
    """Which of the folders next to a folder's splits nothing reads; `unlabelled` is one whose pictures are read."""
    real = None if unlabelled is None else Path(unlabelled).resolve()
    unread = [one for one in folders if real is None or not _same_tree(one.resolve(), real)]
    if unread:
        yield f"{unread[0].parent}: not read: the folders {first_names([one.name for one in unread], NAMED)}"


def class_folder_of(folder: Path, splits: Iterable[Path]) -> Path | None:
    """The class's folder of a split that is or holds a folder, also through links; None where none does."""
    real = folder.resolve()
    inner = (one for split in splits for one in _folders(split))
    return next((one for one in inner if real.is_relative_to(one.resolve())), None)


def _same_tree(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def listing_notes(listings: dict[str, Listing], root: Path) -> Iterator[str]:
    """What a user should know of the files that are not read, or read from where they are not expected."""
    unread = sum((listing.unread for listing in listings.values()), Counter[str]())
    if unread:
        yield f"{root}: not read in the class folders: {suffixes(unread)}; read are {' '.join(SUFFIXES)}"
    for split, listing in listings.items():
        if listing.deeper:
            yield f"{split}: {listing.deeper} images lie deeper than in their class's folder and are read as its own"
        if listing.outside:
            yield f"{split}: {listing.outside} images lie in no class's folder and are not read"


def suffixes(counts: Counter[str]) -> str:
    """Files by suffix, the most frequent ones."""
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))


def _suffix(path: Path) -> str:
    return path.suffix.lower() or "(no suffix)"


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_data(name: str) -> bool:
    """Whether a name is the user's, and not one that systems and editors leave behind."""
    return not name.startswith(".") and name.lower() not in SYSTEM_NAMES


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if _is_data(name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KdxError(f"{folder}: {error.strerror or error}") from error


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder. Of what may not be looked at `Path.is_dir` raises; here it is none."""
    inner = [folder / name for name in _entries(folder)] if os.path.isdir(folder) else []
    return [path for path in inner if os.path.isdir(path)]


def _files(folder: Path, depth: int = 0, above: Iterable[str] = ()) -> Iterator[tuple[Path, int]]:
    """Every file below a folder with its depth, sorted; links are followed, but not in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for name in _entries(folder):
        path = folder / name
        if os.path.isdir(path):
            yield from _files(path, depth + 1, (*above, real))
        else:
            yield path, depth
