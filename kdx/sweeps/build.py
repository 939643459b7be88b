"""What of an installation determines a job's numbers, to be compared between machines. Imports no torch."""

import hashlib
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import kdx

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf")
FILES = (".py", ".yaml", ".json")  # code, configs, and the numbers that code reads


def build() -> dict[str, str]:
    """The versions of what computes, and of kdx with a hash of its files, its configs among them."""
    package = Path(kdx.__file__).parent
    conf = next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())  # wheel, checkout
    known = {path.relative_to(package).as_posix(): path for path in package.rglob("*") if path.suffix in FILES}
    known |= {f"conf/{path.relative_to(conf).as_posix()}": path for path in conf.rglob("*") if path.suffix in FILES}
    digest = hashlib.sha256()
    for name in sorted(known):
        content = known[name].read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"kdx": f"{kdx.__version__}-{digest.hexdigest()[:8]}", "python": python} | {
        package: version(package) for package in PACKAGES
    }


def difference(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str | None:
    """What another installation has that this one has not, in words; None where both would compute the same."""
    other = [
        f"{name} {theirs.get(name)} instead of {value}" for name, value in ours.items() if theirs.get(name) != value
    ]
    return f"has {', '.join(other)}" if other else None
