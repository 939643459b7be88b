"""Whether two configurations were tested on the same data: no difference of scores means anything without that."""

import re
from collections.abc import Sequence

from kdx.results.frame import SEED
from kdx.results.groups import Configuration
from kdx.results.overrides import as_text

OF_PIXELS = {"dataset.size", "dataset.white"}  # give the same images other pixels
OF_IMAGES = re.compile(r"dataset\.(path|source(\..+)?)")  # say which images


def same_data(one: Configuration, other: Configuration) -> bool:
    """Whether both were tested on data with the same contents, as far as they share seeds, whatever its name is.

    Contents may differ where a key gives the same images other pixels. What no record tells counts as equal; the
    names must be then.
    """
    ours, theirs = _hashes(one), _hashes(other)
    pairs = [(ours[seed], theirs[seed]) for seed in ours.keys() & theirs.keys()]
    if not pairs and ours and theirs:
        pairs = [(set().union(*ours.values()), set().union(*theirs.values()))]
    if pairs and all(one & other for one, other in pairs):
        return True
    names = [{text for text in map(as_text, group.runs["dataset"]) if text} for group in (one, other)]
    alike = not all(names) or bool(names[0] & names[1])
    return alike and (not pairs or _only_pixels_differ(one, other))


def on_one_data_set(groups: Sequence[Configuration]) -> bool:
    """Whether all were tested on the data of the first."""
    return all(same_data(groups[0], group) for group in groups)


def _hashes(group: Configuration) -> dict[str, set[str]]:
    """The hashes of the data with which each seed ran, as far as they are known."""
    found: dict[str, set[str]] = {}
    for seed, hash_ in zip(group.runs[SEED], group.runs["data_hash"], strict=True):
        if as_text(hash_):
            found.setdefault(as_text(seed), set()).add(as_text(hash_))
    return found


def _only_pixels_differ(one: Configuration, other: Configuration) -> bool:
    """Whether the overrides of the data tell why its contents differ."""
    ours, theirs = (
        {str(key): as_text(value) for key, value in group.runs.iloc[0].items() if str(key).startswith("dataset.")}
        for group in (one, other)
    )
    differing = {key for key in ours | theirs if ours.get(key, "") != theirs.get(key, "")}
    return bool(differing & OF_PIXELS) and not any(OF_IMAGES.fullmatch(key) for key in differing)
