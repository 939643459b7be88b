"""Data sets and what is done to their images; a user's own data set is made with these names."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdx.data.dataset import Dataset as Dataset
    from kdx.data.dataset import Split as Split
    from kdx.data.dataset import from_arrays as from_arrays

NAMES = ("Dataset", "Split", "from_arrays")


def __getattr__(name: str) -> Any:
    """The names above, once one is asked for: `python -m kdx.data --help` needs no torch."""
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("kdx.data.dataset"), name)
