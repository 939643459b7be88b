"""Data sets before training: which there are, fetching them, checking them.

Users' own data sets are made with `Dataset`, `Split` and `from_arrays` of this module.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdx.command import Choice, Command, Flag, Key, Names, Text, choice, run_command
from kdx.data.dataset import Dataset
from kdx.data.dataset import Split as Split
from kdx.data.dataset import from_arrays as from_arrays
from kdx.data.description import counts_of, imbalance
from kdx.data.download import md5_of
from kdx.data.sources import load_cifar, load_digits, load_medmnist, medmnist_counts, medmnist_file
from kdx.data.survey import survey
from kdx.errors import KdxError, suggest
from kdx.report.tables import aligned

USAGE = """
python -m kdx.data list|prepare NAME...|verify NAME... [data_dir=DIR] [size=28|64|128|224]
python -m kdx.data prepare imagefolder PATH

list shows the data sets with their sizes and licences, and of those that are there how many classes each split has
and how uneven they are; prepare fetches and checks some; verify checks what is there, without network. `data_dir` is
where they lie (default: $KDX_DATA, else data), `size` the pixels of MedMNIST+. Of a folder of your pictures, prepare
tells what it would train: images of each class, sizes, files that cannot be read. The same is said by --list,
--prepare NAME... and prepare=NAME,NAME.
"""
FOLDER = "imagefolder"
ACTIONS = ("list", "prepare", "verify")
KEYS: dict[str, Key] = {
    "list": Flag(),
    "prepare": Names(),
    "verify": Names(),
    "data_dir": Text(),
    "size": Choice("28", ("28", "64", "128", "224")),
}
CIFAR = {  # classes, MB of the archive
    "cifar10": (10, 170.5),
    "cifar100": (100, 169.0),
}


def names() -> list[str]:
    """Every data set that kdx can fetch by itself, and the one that needs no fetching."""
    from medmnist import INFO

    flat = [name for name, info in INFO.items() if "3d" not in name and info["n_channels"] in (1, 3)]
    return [*CIFAR, "digits", *flat]


def list_all(root: Path, size: int) -> str:
    """A table of the data sets with task, classes, images, licence and whether they are there."""
    from medmnist import INFO

    rows = []
    for name in names():
        if name in INFO:
            info = INFO[name]
            path = medmnist_file(name, size, root)
            counts = "/".join(str(info["n_samples"][split]) for split in ("train", "val", "test"))
            cells = [info["task"].split(",")[0], str(len(info["label"])), counts, info["license"]]
            where = f"{path.stat().st_size / 1e6:.1f} MB" if path.exists() else "-"
        elif name in CIFAR:
            classes, megabytes = CIFAR[name]
            cells = ["multi-class", str(classes), "45000/5000/10000", f"none stated ({megabytes:.0f} MB)"]
            folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
            where = "there" if (root / folder).is_dir() else "-"
        else:
            cells, where = ["multi-class", "10", "1257/180/360", "CC BY 4.0 (UCI)"], "in scikit-learn"
        cells[3:3] = _balance_of(name, root, size)
        rows.append([name, *cells, where])
    titles = ["name", "task", "classes", "train/val/test", "classes in each", "most : fewest", "licence", f"in {root}"]
    return aligned(titles, rows)


def _balance_of(name: str, root: Path, size: int) -> list[str]:
    """Of train, val and test: the classes, and the images of the most frequent one for each of the rarest one's."""
    if name in CIFAR:
        return ["/".join(3 * [str(CIFAR[name][0])]), "1.0/1.0/1.0"]
    if name == "digits":
        data = load_digits()
        counts = [counts_of(split, data).tolist() for split in (data.train, data.val, data.test)]
    else:
        path = medmnist_file(name, size, root)
        if not path.exists():
            return ["-", "-"]
        try:
            counts = medmnist_counts(name, path)
        except KdxError:
            return ["unreadable", "-"]
    return ["/".join(str(sum(map(bool, one))) for one in counts), "/".join(map(imbalance, counts))]


def load(name: str, root: Path, size: int, download: bool) -> Dataset:
    """One data set by its name, every image and label checked."""
    check_names([name])
    if name in CIFAR:
        return load_cifar(name, str(root), download)
    if name == "digits":
        return load_digits()
    return load_medmnist(name, size, str(root), download)


def check_names(wanted: Sequence[str]) -> None:
    """`KdxError` for a data set that is not known."""
    known = names()
    for name in wanted:
        if name not in known:
            raise KdxError(f"{name}: no such data set{suggest(name, known)}; choose {', '.join(known)}")


def prepare(wanted: Sequence[str], root: Path, size: int, download: bool = True) -> str:
    """Fetch (or only check) data sets and tell what they hold; a line each."""
    from medmnist import INFO

    lines = []
    for name in wanted:
        data = load(name, root, size, download)
        if name in INFO:
            path = medmnist_file(name, size, root)
            expected = INFO[name]["MD5" if size == 28 else f"MD5_{size}"]
            if md5_of(path) != expected:
                raise KdxError(f"{path}: its md5 is not {expected}: delete it and fetch it again")
        counts = "/".join(str(len(split)) for split in (data.train, data.val, data.test))
        shape = "x".join(map(str, data.image_shape))
        lines.append(f"{name}: sound; {counts} images of {shape}, {data.num_classes} classes")
    return "\n".join(lines)


def handle_data_sets(words: list[str], data_dir: str | None, size: str, **actions: Any) -> Iterator[str | KdxError]:
    """List, prepare or verify, which the words or one of the keys say."""
    root, pixels = Path(data_dir or os.environ.get("KDX_DATA", "data")), int(size)
    asked = {name: value for name, value in actions.items() if value}
    if words:
        action, *wanted = words
        asked[choice("action", action, ACTIONS)] = (not wanted or None) if action == "list" else wanted
    if len(asked) != 1 or not all(asked.values()):
        raise KdxError("choose one of list, prepare NAME..., verify NAME...")
    ((action, wanted),) = asked.items()
    if action == "list":
        yield list_all(root, pixels)
        return
    if wanted[0] == FOLDER:
        if len(wanted) != 2:
            raise KdxError(f"{action} {FOLDER}: one folder is needed, {action} {FOLDER} PATH")
        yield from survey(wanted[1])
        return
    check_names(wanted)
    for name in wanted:  # each is told when it is done: a download may take long
        yield prepare([name], root, pixels, download=action == "prepare")


COMMAND = Command(USAGE, handle_data_sets, KEYS, words=("[list|prepare|verify [NAME...]]",))


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(COMMAND, arguments)


if __name__ == "__main__":
    main()
