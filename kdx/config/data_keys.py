"""The keys of `dataset` that only a data source reads: refused where the chosen one does not. Imports no torch."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from kdx.config.problems import Problems
from kdx.config.schema import DatasetSchema
from kdx.config.swap_points import is_shipped
from kdx.ranges import leaves

READ_BY_KDX = ("name", "source", "resize", "augment", "balance", "unlabelled", "normalize")
OF_UNLABELLED = ("cache", "cache_dir", "in_memory_gb")  # which kdx reads for dataset.unlabelled, too
DEFAULTS = {field.name: field.default for field in dataclasses.fields(DatasetSchema)}
REFERENCE = re.compile(r"(?:dataset|\.)\.(\w+)")  # ${dataset.path}, and ${..path} inside of dataset.source


def check_data_keys(config: Mapping[str, Any], problems: Problems) -> None:
    """Keys that nothing reads, in a composed config of plain values whose `${...}` are not resolved.

    A source reads the keys that its own arguments refer to. What an option of conf holds for a source of its own is
    not the user's wish where the user put another source in its place.
    """
    dataset = config.get("dataset")
    source = dataset.get("source") if isinstance(dataset, Mapping) else None
    if not isinstance(dataset, Mapping) or not isinstance(source, Mapping):  # wrong, or taken from elsewhere by ${...}
        return
    ours = is_shipped(source.get("_target_"))
    texts = [text for _, text in leaves(config) if isinstance(text, str) and "${" in text]
    read = {name for text in texts for name in REFERENCE.findall(text)} | set(READ_BY_KDX)
    read |= set(OF_UNLABELLED) if dataset.get("unlabelled") is not None else set()
    for name in sorted(dataset.keys() & DEFAULTS.keys() - read):
        value = dataset[name]
        as_conf_has_it = value == DEFAULTS[name] or "${" in str(value)
        if value is not None and not (as_conf_has_it and (not ours or name in source)):
            problems.add(f"dataset.{name}", value, _instead(name, dataset, ours))


def _instead(name: str, dataset: Mapping[str, Any], ours: bool) -> str:
    """What to do about a key that the source does not read."""
    source = dataset["source"]
    if name in source:
        return f"dataset.source.{name}={source[name]} is read in its place; leave one out"
    if not ours:
        return f"{source['_target_']} is not given it; write +dataset.source.{name}=VALUE if it takes it"
    if name == "size":
        return f"{dataset['name']} has one size; dataset.resize scales it"
    what = "folder" if name == "path" else "picture files"
    other = ", or dataset.unlabelled=FOLDER" if name in OF_UNLABELLED else ""
    return f"dataset={dataset['name']} reads no {what}; choose dataset=imagefolder{other}"
