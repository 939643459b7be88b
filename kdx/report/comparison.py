"""Two sweeps or runs beside each other, paired by seed where they share seeds: `python -m kdx.report A B`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdx.errors import KdxError
from kdx.report.gains import NAMES, Comparison, compared, digits_of, gain_cells, gain_header, score_of
from kdx.report.sweep_csv import wilson_of
from kdx.report.tables import aligned
from kdx.results import (
    FINISHED,
    Configuration,
    as_text,
    best_of,
    decides,
    grouped,
    is_of_distillation,
    load,
    override_keys,
    swept_keys,
)
from kdx.results.frame import SEED
from kdx.text import harmless

if TYPE_CHECKING:
    import pandas as pd

Pair = tuple[Configuration, Configuration]
DATA = ("dataset", "data_hash")


def compare_folders(folders: Sequence[Path]) -> str:
    """Each folder against the first one, in words; p is corrected over all rows.

    Configurations that both have are compared one by one. Where they have none in common, the best on validation of
    each, or the only one. `KdxError` where a folder has no finished run.
    """
    first, *others = [_read(folder) for folder in folders]
    pairs: list[Pair] = []
    names: list[str] = []
    notes: list[str] = []
    for folder, frame in zip(folders[1:], others, strict=True):
        found = _pairs(first, frame)
        pairs += found
        names += [str(folder)] * len(found)
        notes += _notes((folders[0], first), (folder, frame), found)
    score = score_of([group for pair in pairs for group in pair])
    comparisons = compared(pairs, score)
    lines = [f"Compared with {folders[0]} on test {NAMES[score]}", aligned(*_table(names, comparisons)), "", *notes]
    lines += [line for pair in pairs for line in _one_seed(pair, score)]
    return "\n".join(harmless(line, keep="\n") for line in ["", *lines]).rstrip()


def _read(folder: Path) -> "pd.DataFrame":
    frame = load(folder)
    if not grouped(frame):
        raise KdxError(f"{folder}: nothing to compare: no run has finished")
    return frame


def _pairs(first: "pd.DataFrame", frame: "pd.DataFrame") -> list[Pair]:
    """Pairs of a configuration of `frame` with the one of `first` that it is compared with."""
    ours, theirs = grouped(frame), grouped(first)
    if len(ours) > 1 or len(theirs) > 1:
        keys = [key for key in dict.fromkeys((*swept_keys(first), *swept_keys(frame))) if key != "seed"]
        known = {_values(group, keys): group for group in theirs}
        same = [(group, known[_values(group, keys)]) for group in ours if _values(group, keys) in known]
        if same:
            return same
    return [(best_of(ours), best_of(theirs))]


def _values(group: Configuration, keys: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What a configuration is, by the keys that either folder swept; of one without a teacher not how it is taught."""
    run = group.runs.iloc[0]
    told = [key for key in keys if group.distilled or not is_of_distillation(key)]
    return (("distilled", str(group.distilled)), *((key, as_text(run.get(key))) for key in told))


def _table(names: Sequence[str], comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [name, comparison.one.name, comparison.reference.name if comparison.reference else "-", *gain_cells(comparison)]
        for name, comparison in zip(names, comparisons, strict=True)
    ]
    return ["folder", "configuration", "compared with", *gain_header(comparisons)], rows


def _notes(
    one: tuple[Path, "pd.DataFrame"], other: tuple[Path, "pd.DataFrame"], pairs: Sequence[Pair]
) -> Iterator[str]:
    """What must be known of two folders before their difference is believed."""
    (first, theirs), (folder, ours) = one, other
    finished = [frame[frame["status"] == FINISHED] for frame in (theirs, ours)]
    data = [set(zip(*(frame[key].map(as_text) for key in DATA), strict=True)) for frame in finished]
    data = [{pair for pair in each if all(pair)} for each in data]  # an older record tells no hash
    if all(data) and data[0] != data[1]:
        told = [", ".join(f"{name} {hash_}" for name, hash_ in sorted(each)) for each in data]
        yield f"NOT THE SAME DATA: {first}: {told[0]}; {folder}: {told[1]}."
    values = [{key: _constant(frame, key) for key in override_keys(frame)} for frame in (theirs, ours)]
    differing = {
        key: f"{key}={values[1].get(key) or '-'} (was {values[0].get(key) or '-'})"
        for key in dict.fromkeys((*values[0], *values[1]))
        if decides(key) and values[0].get(key, "") != values[1].get(key, "")
    }
    if differing:
        yield f"{folder} differs in {', '.join(differing.values())}."
    unlike = [one.name for one, other in pairs if one.settings and other.settings and not one.settings & other.settings]
    if unlike and differing.keys() <= {SEED}:
        yield f"{folder} has other settings or code than {first}, which no override tells: {', '.join(unlike)}."


def _constant(frame: "pd.DataFrame", key: str) -> str:
    """The values of an override, in the order of the jobs; "" where no job has it."""
    return ",".join(dict.fromkeys(text for text in map(as_text, frame[key]) if text))


def _one_seed(pair: Pair, score: str) -> Iterator[str]:
    """What the images alone say of a configuration with one run."""
    if any(len(group.runs) > 1 for group in pair) or score != "test_accuracy":
        return
    for group in pair:
        run = group.runs.iloc[0].to_dict()
        role, bounds = run["delivered"], wilson_of(run, run["delivered"])
        if bounds:
            share, images = run[f"{role}_test_accuracy"], int(run[f"{role}_test_images"])
            told = f"{share:.{digits_of(score)}f} % of {images} test images"
            yield f"{run['folder']}: {told}, 95 % interval {' to '.join(f'{bound:.2f}' for bound in bounds)}."
