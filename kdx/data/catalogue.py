"""The data sets that kdx knows by name: which are there, fetching them, checking them."""

from collections.abc import Sequence
from pathlib import Path

from kdx.data.dataset import Dataset
from kdx.data.description import counts_of, imbalance
from kdx.data.download import md5_of
from kdx.data.sources import load_cifar, load_digits, load_medmnist, medmnist_counts, medmnist_file
from kdx.errors import KdxError, no_such

TITLES = ("name", "task", "classes", "train/val/test", "classes in each", "most : fewest", "licence")
CIFAR = {  # classes, MB of the archive
    "cifar10": (10, 170.5),
    "cifar100": (100, 169.0),
}


def names() -> list[str]:
    """Every data set that kdx can fetch by itself, and the one that needs no fetching."""
    from medmnist import INFO

    flat = [name for name, info in INFO.items() if "3d" not in name and info["n_channels"] in (1, 3)]
    return [*CIFAR, "digits", *flat]


def rows_of_all(root: Path, size: int) -> list[list[str]]:
    """Of each data set what `TITLES` say, and whether it is there, in `root`."""
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
    return rows


def _balance_of(name: str, root: Path, size: int) -> list[str]:
    """Of train, val and test: the classes, and the images of the most frequent one for each of the rarest one's."""
    if name in CIFAR:
        return ["/".join(3 * [str(CIFAR[name][0])]), "1.0/1.0/1.0"]
    if name == "digits":
        data = load_digits()
        counts = [counts_of(split, data).tolist() for split in data.splits.values()]
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
            raise KdxError(f"{name}: {no_such('data set', name, known)}")


def prepare(name: str, root: Path, size: int, download: bool) -> str:
    """Fetch (or only check) a data set and tell what it holds, in a line."""
    from medmnist import INFO

    data = load(name, root, size, download)
    if name in INFO:
        path = medmnist_file(name, size, root)
        expected = INFO[name]["MD5" if size == 28 else f"MD5_{size}"]
        if md5_of(path) != expected:
            raise KdxError(f"{path}: its md5 is not {expected}: delete it and fetch it again")
    counts = "/".join(str(len(split)) for split in data.splits.values())
    shape = "x".join(map(str, data.image_shape))
    return f"{name}: sound; {counts} images of {shape}, {data.num_classes} classes"
