"""Data sets before training: which there are, fetching them, checking them.

Users' own data sets are made with `Dataset`, `Split` and `from_arrays` of this module.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from kdx.command import errors_end_the_process
from kdx.data.dataset import Dataset
from kdx.data.dataset import Split as Split
from kdx.data.dataset import from_arrays as from_arrays
from kdx.data.download import md5_of
from kdx.data.sources import load_cifar, load_digits, load_medmnist, medmnist_file
from kdx.errors import KdxError, suggest
from kdx.report.tables import aligned

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
        rows.append([name, *cells, where])
    return aligned(["name", "task", "classes", "train/val/test", "licence", f"in {root}"], rows)


def load(name: str, root: Path, size: int, download: bool) -> Dataset:
    """One data set by its name, every image and label checked."""
    if name not in names():
        raise KdxError(f"{name}: no such data set{suggest(name, names())}; choose {', '.join(names())}")
    if name in CIFAR:
        return load_cifar(name, str(root), download)
    if name == "digits":
        return load_digits()
    return load_medmnist(name, size, str(root), download)


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kdx.data", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="the data sets, their sizes and licences")
    what.add_argument("--prepare", nargs="+", metavar="NAME", help="fetch and check")
    what.add_argument("--verify", nargs="+", metavar="NAME", help="check what is there, without network")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("KDX_DATA", "data")))
    parser.add_argument("--size", type=int, default=28, choices=(28, 64, 128, 224), help="MedMNIST+: pixels")
    args = parser.parse_args(arguments)
    with errors_end_the_process():
        if args.list:
            print(list_all(args.data_dir, args.size))
        else:
            print(prepare(args.prepare or args.verify, args.data_dir, args.size, download=bool(args.prepare)))


if __name__ == "__main__":
    main()
