"""Whether two configurations were tested on the same data: no difference of scores means anything without that."""

from kdx.results.frame import SEED
from kdx.results.groups import Configuration
from kdx.results.overrides import as_text


def same_data(one: Configuration, other: Configuration) -> bool:
    """Whether both have the data set of one name and, as far as they share seeds, with the same contents.

    Contents may differ where a key of `dataset` does, such as the images' size. What no record tells counts as equal.
    """
    if not _meet(_all(one, "dataset"), _all(other, "dataset")):
        return False
    if _keys_of_data(one) != _keys_of_data(other):
        return True
    ours, theirs = _hashes(one), _hashes(other)
    shared = ours.keys() & theirs.keys()
    if not shared:
        return _meet(_all(one, "data_hash"), _all(other, "data_hash"))
    return all(_meet(ours[seed], theirs[seed]) for seed in shared)


def _meet(ours: set[str], theirs: set[str]) -> bool:
    return not ours or not theirs or bool(ours & theirs)


def _all(group: Configuration, column: str) -> set[str]:
    return {text for text in map(as_text, group.runs[column]) if text}


def _hashes(group: Configuration) -> dict[str, set[str]]:
    """The hashes of the data with which each seed ran."""
    found: dict[str, set[str]] = {}
    for run in group.runs.to_dict("records"):
        found.setdefault(as_text(run[SEED]), set()).update(filter(None, [as_text(run["data_hash"])]))
    return found


def _keys_of_data(group: Configuration) -> dict[str, str]:
    run = group.runs.iloc[0].to_dict()
    return {
        str(key): as_text(value) for key, value in run.items() if str(key).startswith("dataset.") and as_text(value)
    }
