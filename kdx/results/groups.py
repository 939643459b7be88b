"""Runs that differ in their seed only, put together: configurations, what compares them, grids over two keys."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdx.errors import KdxError
from kdx.recipe import ACCURACY, LOSS
from kdx.results.frame import (
    COST_COLUMNS,
    FINISHED,
    SCORE_COLUMNS,
    SEED,
    STAGE_COLUMNS,
    override_keys,
    roles_of,
    swept_keys,
)
from kdx.results.overrides import as_text

if TYPE_CHECKING:
    import pandas as pd

DATA_HASH, SWEEP_NAME, SETTINGS = "data_hash", "sweep", "settings"  # values that are no overrides, see `grouped`
GRID_VALUES = (*SCORE_COLUMNS, *COST_COLUMNS, "epoch", "seconds")  # what `grid` can show
CHANGES_NOTHING = re.compile(  # where a run and what it keeps lies, what is told of it, what only costs time
    r"output_dir|data_dir|dataset\.(cache|cache_dir|in_memory_gb)|download|resume|report|logger|log_interval|"
    r"save_interval|checkpoint_every_steps|num_workers|plan|visualize\..+|stage\.missing|"
    r"(stage\.[^.]+\.)?kd\.cache_logits|(hydra|search)\..+"
)
METHOD_NUMBERS = re.compile(r"(stage\.[^.]+\.)?kd\..+")
OF_LOSS = re.compile(  # that make a stage's loss another quantity, of which the lower value is no longer the better
    r"(stage\.(?P<role>[^.]+)\.)?(label_smoothing|class_weights|experiment|"
    r"(?P<taught>guide|kd(@.+|\.(?!lr$|cache_logits$).+)?))"
)
DISTILLATION = re.compile(r"(stage\.[^.]+\.)?(kd(\..+)?|guide)")


@dataclass(frozen=True, eq=False)
class Configuration:
    """Finished runs that differ in their seed only; `values` are those of the keys that were swept."""

    values: dict[str, Any]
    runs: "pd.DataFrame"
    _stages: dict[str | None, "pd.DataFrame"] = field(default_factory=dict, repr=False)  # made once a role

    @property
    def roles(self) -> list[str]:
        """The roles of its runs' stages, in the order of the chain; a run that reused a stage may lack its teachers."""
        return [role for role in roles_of(self.runs) if not self.runs[f"{role}_fingerprint"].isna().all()]

    def stages(self, role: str | None = None) -> "pd.DataFrame":
        """STAGE_COLUMNS of every run's stage of a role (None: the delivered one); runs that share one count once."""
        if role not in self._stages:
            import pandas as pd

            rows = [
                {name: run.get(f"{role or run['delivered']}_{name}") for name in STAGE_COLUMNS}
                for run in self.runs.to_dict("records")
            ]
            table = pd.DataFrame(rows, columns=list(STAGE_COLUMNS))
            self._stages[role] = table.dropna(subset="fingerprint").drop_duplicates("fingerprint")
        return self._stages[role]

    def scores(self, name: str, role: str | None = None) -> "pd.Series":
        """One score, e.g. `test_accuracy`, of each of these stages."""
        return self.stages(role)[name].dropna().astype(float)

    def by_seed(self, name: str, role: str | None = None) -> "pd.DataFrame":
        """A row a seed: `seed` as text, the mean `score` of its stages of a role, and their fingerprints as `stage`.

        Runs that tell no seed all have the one of the configuration that they share.
        """
        import pandas as pd

        rows: dict[str, dict[str, float]] = {}
        for run in self.runs.to_dict("records"):
            at = role or run["delivered"]
            score, fingerprint = run.get(f"{at}_{name}"), run.get(f"{at}_fingerprint")
            if as_text(score) and as_text(fingerprint):
                rows.setdefault(as_text(run.get(SEED)), {})[str(fingerprint)] = float(score)
        table = [
            {"seed": seed, "score": mean_of(found.values()), "stage": " ".join(sorted(found))}
            for seed, found in rows.items()
        ]
        return pd.DataFrame(table, columns=["seed", "score", "stage"])

    @property
    def name(self) -> str:
        """Its values as on the command line."""
        told = {key: as_text(value) for key, value in self.values.items()}
        return " ".join(f"{key}={text}" for key, text in told.items() if text) or "the one configuration"

    @property
    def settings(self) -> set[str]:
        """The hashes of the delivered stages' settings and code but for the seed, as far as they are known."""
        known = map(as_text, self.runs[f"{self.runs['delivered'].iloc[0]}_configuration"])
        return {each for each in known if each}

    @property
    def distilled(self) -> bool:
        """Whether the delivered stages had a teacher."""
        return _distilled(self.runs.iloc[0].to_dict())

    @property
    def teacher(self) -> str | None:
        """The role that its delivered stages are measured against, see `first_teacher`; None where there is none."""
        known = {role: self.runs[self.runs[f"{role}_fingerprint"].notna()].iloc[0] for role in self.roles}
        guides = {role: as_text(run[f"{role}_guide"]).split("+") for role, run in known.items()}
        return first_teacher(guides, str(self.runs["delivered"].iloc[0]))

    def mean(self, name: str) -> float:
        """The mean of a score of the delivered stages; NaN where there is none."""
        return mean_of(self.scores(name))


def mean_of(values: Iterable[float]) -> float:
    """The mean by an exact sum, so that all tables that show it agree to the digit; NaN of nothing."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan


def first_teacher(guides: Mapping[str, Sequence[str]], role: str) -> str | None:
    """The first of the recorded roles from which a role learnt, by the guides of each; None where there is none.

    Who has no guide is measured against the chain's first role, unless that one was itself taught by something that is
    not recorded, as by a teacher without a classifier. Of several guides the first recorded one leads on.
    """
    above = {name: [guide for guide in found if guide in guides] for name, found in guides.items()}
    if not any(guides[role]):
        first = next(iter(guides))
        return None if first == role or any(guides[first]) else first
    top = role
    for _ in guides:
        top = above[top][0] if above[top] else top
    return None if top == role else top


def selection_of(groups: "Sequence[Configuration]") -> tuple[str, str]:
    """What compares configurations on validation, and its column: what chose their epochs where that is one thing.

    The losses of configurations whose `unlike_losses` are not empty are not; accuracy it is then.
    """
    chosen = {str(by) for group in groups for by in group.stages()["selected_by"].dropna()}
    one = len(chosen) == 1 and not (LOSS in chosen and unlike_losses(groups))
    return (chosen.pop(), "val_selected") if one else (ACCURACY, "val_accuracy")


def unlike_losses(groups: Sequence[Configuration]) -> list[str]:
    """The keys that differ among configurations and make the losses of their delivered stages different quantities."""
    roles = {str(group.runs["delivered"].iloc[0]) for group in groups}
    taught = any(group.distilled for group in groups)
    return [
        key
        for key in keys_of(groups)
        if any(changes_loss(key, role, taught) for role in roles)
        and len({as_text(group.values[key]) if key in group.values else None for group in groups}) > 1
    ]


def changes_loss(key: str, role: str, taught: bool) -> bool:
    """Whether an override makes the loss of a role's stage another quantity; `taught`: the stage has a teacher."""
    found = OF_LOSS.fullmatch(key)
    return found is not None and found["role"] in (None, role) and (taught or found["taught"] is None)


def rank_of(groups: Sequence[Configuration]) -> Callable[[Configuration], float]:
    """A number for each configuration, the higher the better on validation; the lowest where it has no such score."""
    select, column = selection_of(groups)

    def rank(group: Configuration) -> float:
        mean = group.mean(column)
        return -math.inf if math.isnan(mean) else -mean if select == LOSS else mean

    return rank


def best_of(some: Sequence[Configuration], among: Sequence[Configuration] | None = None) -> Configuration:
    """The one with the best mean of what selects, on validation: the test split has no say.

    `among` are all configurations that are compared, which say what selects; None: these.
    """
    return max(some, key=rank_of(some if among is None else among))


def is_of_distillation(key: str) -> bool:
    """Whether an override says how, or by whom, stages are taught: it means nothing to one without a teacher."""
    return DISTILLATION.fullmatch(key) is not None


def decides(key: str) -> bool:
    """Whether an override may change a result."""
    return CHANGES_NOTHING.fullmatch(key) is None


def grouped(frame: "pd.DataFrame") -> list[Configuration]:
    """The finished runs, those that differ in their seed only put together.

    Without distillation the values of kd mean nothing: such runs are one configuration, unless one seed's differ, as
    those that start from a distilled stage do. What else the command lines do not tell is among the values where runs
    differ in it: `data_hash`, of data that changed under one name, `sweep`, of folders with other settings or code, and
    `settings`, of such runs in one folder.
    A run that needed no teacher has the ones of its record from the runs beside it.
    """
    keys = [key for key in swept_keys(frame) if key != SEED and decides(key)]
    finished = _with_teachers(frame[(frame["status"] == FINISHED) & frame["delivered"].notna()], frame)
    runs = finished.to_dict("records")
    full = [{key: run[key] for key in keys} for run in runs]
    brief = [
        own if _distilled(run) else {key: own[key] for key in own if not METHOD_NUMBERS.fullmatch(key)}
        for own, run in zip(full, runs, strict=True)
    ]
    stages = [run.get(f"{run['delivered']}_fingerprint") for run in runs]
    unlike = _unlike(brief, runs, stages)
    values = [long if _text_of(short) in unlike else short for long, short in zip(full, brief, strict=True)]
    if _other_data(values, runs):
        values = [{**own, DATA_HASH: as_text(run["data_hash"])[:12]} for own, run in zip(values, runs, strict=True)]
    settings, sweeps = [_configuration_of(run) for run in runs], _sweeps_of(runs)
    if len({*sweeps}) > 1 and (_unlike(values, runs, stages) or _several(values, settings)):
        values = [{**own, SWEEP_NAME: sweep} for own, sweep in zip(values, sweeps, strict=True)]
    if _several(values, settings):
        values = [{**own, SETTINGS: known[:8]} for own, known in zip(values, settings, strict=True)]
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for position, own in enumerate(values):
        groups.setdefault(_text_of(own), []).append(position)
    return [Configuration(values[positions[0]], finished.iloc[positions]) for positions in groups.values()]


def _text_of(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, as_text(value)) for key, value in values.items())


def _unlike(
    values: Sequence[dict[str, Any]], runs: Sequence[Mapping[Any, Any]], facts: Sequence[Any]
) -> set[tuple[tuple[str, str], ...]]:
    """The configurations of which two runs with one seed differ in a fact."""
    known: dict[tuple[Any, str], set[str]] = {}
    for own, run, fact in zip(values, runs, facts, strict=True):
        known.setdefault((_text_of(own), as_text(run[SEED])), set()).add(as_text(fact))
    return {name for (name, _), found in known.items() if len(found) > 1}


def _other_data(values: Sequence[dict[str, Any]], runs: Sequence[Mapping[Any, Any]]) -> bool:
    """Whether a configuration ran on several data for another reason than its seeds: each may have data of its own."""
    hashes = [as_text(run["data_hash"]) for run in runs]
    if _unlike(values, runs, hashes):
        return True
    seeds: dict[tuple[Any, str], set[str]] = {}
    for own, run, hash_ in zip(values, runs, hashes, strict=True):
        seeds.setdefault((_text_of(own), hash_), set()).add(as_text(run[SEED]))
    several = Counter(name for name, hash_ in seeds if hash_)
    return any(several[name] > 1 and len(found) > 1 for (name, hash_), found in seeds.items() if hash_)


def _several(values: Sequence[dict[str, Any]], settings: Sequence[str]) -> bool:
    """Whether runs of one configuration had several settings or code; of older ones neither is known."""
    pairs = {(_text_of(own), known) for own, known in zip(values, settings, strict=True) if known}
    return len({name for name, _ in pairs}) < len(pairs)


def _configuration_of(run: Mapping[Any, Any]) -> str:
    return as_text(run.get(f"{run['delivered']}_configuration"))


def _sweeps_of(runs: Sequence[Mapping[Any, Any]]) -> list[str]:
    """The folder that holds each run, as told from what all folders have in common."""
    folders = [os.path.dirname(os.path.abspath(run["folder"])) for run in runs]
    common = os.path.commonpath(folders) if folders else ""
    return [os.path.relpath(folder, common) for folder in folders]


def _with_teachers(finished: "pd.DataFrame", frame: "pd.DataFrame") -> "pd.DataFrame":
    """Runs with the stages that taught theirs, as far as any run of the frame records these: by their fingerprints.

    A run whose stages were reused needs no teacher of them and records none.
    """
    finished, roles = finished.reset_index(drop=True), roles_of(frame)
    known: dict[tuple[str, str], dict[Any, Any]] = {}
    for run in frame.to_dict("records"):
        for role in roles:
            known.setdefault((role, as_text(run[f"{role}_fingerprint"])), run)
    for row, run in enumerate(finished.to_dict("records")):
        for role in reversed(roles):  # students first: an assistant that is found names its teacher
            guides, prints = (as_text(run.get(f"{role}_{name}")).split("+") for name in ("guide", "taught_by"))
            for guide, fingerprint in zip(guides, prints, strict=False):  # old records have no fingerprints
                other = known.get((guide, fingerprint)) if fingerprint else None
                if other is None or as_text(run[f"{guide}_fingerprint"]):
                    continue
                for column in (f"{guide}_{name}" for name in STAGE_COLUMNS):
                    run[column] = finished.at[row, column] = other[column]
    return finished


def keys_of(groups: Iterable[Configuration]) -> list[str]:
    """The keys that were swept, those of all configurations."""
    return list(dict.fromkeys(key for group in groups for key in group.values))


def configurations(frame: "pd.DataFrame", role: str | None = None) -> "pd.DataFrame":
    """A row a configuration, the best on validation first: its swept values, n, mean and std of each score over seeds.

    The scores are those of a role's stages (None: the delivered ones); std is the sample's, NaN for one stage.
    """
    import pandas as pd

    names = SCORE_COLUMNS
    rows = []
    groups = grouped(frame)
    for group in groups:
        stages = group.stages(role)[list(names)].astype(float)
        means = {f"{name}_mean": mean_of(stages[name].dropna()) for name in names}
        spreads = {f"{name}_std": stages[name].std() for name in names}
        rows.append({**group.values, "n": len(stages), **means, **spreads})
    keys = keys_of(groups)
    columns = [*keys, "n", *(f"{name}_{how}" for name in names for how in ("mean", "std"))]
    select, column = selection_of(groups)
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(f"{column}_mean", ascending=select == LOSS, kind="stable", ignore_index=True)


def grid(frame: "pd.DataFrame", rows: str, columns: str, value: str = "val_accuracy") -> "pd.DataFrame":
    """The mean of a score of the delivered stages over two overrides; a cell without a run is NaN.

    Both axes are sorted, numbers as numbers. Runs that share a stage count once.
    """
    import pandas as pd

    keys = [key for key in override_keys(frame) if key != SEED]
    if rows == columns or not {rows, columns} <= set(keys):
        raise KdxError(f"{rows}, {columns}: choose two of {', '.join(keys)}")
    if value not in GRID_VALUES:
        raise KdxError(f"{value}: choose one of {', '.join(GRID_VALUES)}")
    shared, found = {rows, columns} - {*swept_keys(frame)}, []
    for group in grouped(frame):
        same = {key: group.runs[key].iloc[0] for key in shared}
        at = {key: (same | group.values).get(key) for key in (rows, columns)}
        if "" not in map(as_text, at.values()):
            found += [{**at, value: score} for score in group.scores(value)]
    table = pd.DataFrame(found, columns=[rows, columns, value])
    shaped = table.pivot_table(index=rows, columns=columns, values=value, aggfunc=mean_of, sort=False)
    return shaped.loc[sorted(shaped.index, key=_as_number), sorted(shaped.columns, key=_as_number)]


def _distilled(run: Mapping[Any, Any]) -> bool:
    """Whether a run's delivered stage had a teacher: its record knows, the command line may leave the method out."""
    return bool(as_text(run.get(f"{run['delivered']}_guide")))


def _as_number(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, str(value)
