"""Search for good values of any keys: `python -m kdx.search experiment=search_kd`. Needs optuna (extra `search`)."""

import importlib.util
import logging
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdx import cli, ranges
from kdx.chain.index import own_folder
from kdx.command import Flag, Key, Text, asks_for_help, split_key
from kdx.compose import compose_jobs, compose_line
from kdx.config.hydra_keys import check_backend
from kdx.config.problems import Problems
from kdx.config.schema import DASK, SearchSchema, Settings
from kdx.config.settings import explain_key, flat_keys, read_settings
from kdx.config.stage_overrides import quoted
from kdx.config.swap_points import GROUPS
from kdx.errors import KdxError, suggest
from kdx.recipe import ACCURACY, AUC, AUTO, DECIMALS, LOSS, SCORES, SELECTIONS
from kdx.report.sweep import write_report
from kdx.results import SUMMARY, changes_loss, load_sweep, read_log, read_run, write_run
from kdx.run import CONF
from kdx.run import main as run_main
from kdx.sweeps.jobs import Job, JobEnd, Program
from kdx.sweeps.launch import Executor, Launch, executors
from kdx.sweeps.outlook import Outlook
from kdx.sweeps.parallel import THREADS, run_parallel
from kdx.sweeps.scout import fingerprints_of
from kdx.sweeps.watch import watched
from kdx.torchrun import refuse_torchrun

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

USAGE = """
python -m kdx.search experiment=search_kd [key=value...] [trials=N] [n_jobs=N] [backend=dask] [prune=true|false]
                     [name=NAME] [--config-dir DIR] [--config-name NAME]

Searches for values of the keys that search.space lists, with kdx's keys as for a run. trials, n_jobs, backend, prune
and name stand for search.trials and so on, also as --trials N. What is told on validation decides; started again, a
search of the same name goes on. backend=dask: n_jobs trials at a time on the workers of a cluster.
"""
OWN: dict[str, Key] = {"name": Text(), "trials": Text(), "n_jobs": Text(), "prune": Flag(), "backend": Text()}
PRUNED = "pruned"
STAGES = "stages"  # attribute of a study: what its trials train, at some places in the space
INSTEAD_OF = "instead_of"  # marks a trial that repeats one which died with an earlier search


def search(requested: SearchSchema, settings: Settings, program: Program, overrides: Sequence[str]) -> Path:
    """Run the trials that are left of a search; the folder that holds its study and its trials.

    Each trial is a job with the overrides that the sampler proposes. What its last stage is selected by, epoch by
    epoch, decides whether it is pruned; what it delivers is told to the sampler. The test split has no say.
    """
    refuse_what_moves_the_measure(requested, settings)
    folder = Path(settings.output_dir) / "search" / requested.name
    with own_folder(folder, "search", "search.name"):
        _search_in(folder, requested, settings, program, overrides)
    return folder


def _search_in(
    folder: Path, requested: SearchSchema, settings: Settings, program: Program, overrides: Sequence[str]
) -> None:
    last = settings.deliver[-1]
    select = settings.stage(last).recipe.select
    study = _open_study(requested, folder, settings.seed, select)
    stages = fingerprints_of(program, [[*overrides, *place] for place in _places_in(requested.space)])
    _refuse_other_search(study, stages, folder)
    trials = _Trials(study, requested, folder, overrides, last, select)
    if not _trials_left(study, requested):
        return
    launch = Launch(requested.n_jobs, cluster=requested.backend == DASK)
    with executors(program, launch, requested.n_jobs, folder) as executor_of:
        while left := _trials_left(study, requested):  # those that fail are made up for
            executor, at_once = executor_of(requested.n_jobs), min(left, requested.n_jobs)
            if at_once > 1:
                log.info("%d trials, %d at a time; what each prints is in its console.log", left, at_once)
            with watched(Outlook(executor, left), trials.values_of):
                run_parallel(partial(trials.run, executor), range(left), _tell, executor.stop, at_once, THREADS)


@dataclass(frozen=True)
class TrialEnd:
    """What a trial found, as a line tells it."""

    number: int
    values: str
    how: str


class _Trials:
    """The trials of a study; what concerns the study is done by one thread at a time."""

    def __init__(
        self,
        study: "optuna.Study",
        requested: SearchSchema,
        folder: Path,
        overrides: Sequence[str],
        role: str,
        select: str,
    ) -> None:
        self.study, self.requested, self.folder = study, requested, folder
        self.overrides, self.role, self.select = tuple(overrides), role, select
        self.lock = threading.Lock()

    def values_of(self, job: Job) -> str:
        """What tells a trial's job from the others: the values that were proposed."""
        return " ".join(job.overrides[len(self.overrides) :])

    def run(self, executor: Executor, index: int) -> TrialEnd | None:
        """Propose values, run the job, tell the sampler; None where the search is stopping."""
        if executor.stopping:
            return None
        with self.lock:
            trial = self.study.ask()
            values = tuple(_override(key, _propose(trial, key, space)) for key, space in self.requested.space.items())
        job = Job(trial.number, (*self.overrides, *values), self.folder / str(trial.number))
        end = executor.run(job, partial(self._reason_to_prune, trial, job) if self.requested.prune else None)
        if end is None:
            return None
        with self.lock:
            return self._told(trial, end)

    def _reason_to_prune(self, trial: "optuna.Trial", job: Job) -> str | None:
        with self.lock:
            return PRUNED if _falls_behind(trial, job, self.role, self.select) else None

    def _told(self, trial: "optuna.Trial", end: JobEnd) -> TrialEnd:
        import optuna

        if end.reason == PRUNED:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            _record_pruned(self.folder / str(trial.number))
            how = PRUNED
        elif end.reason is not None:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            how = f"FAILED: {end.reason}"
        else:
            self.study.tell(trial, end.value)
            where = "" if end.worker is None else f" on {end.worker}"
            how = f"val {end.value:.{DECIMALS[end.selected_by]}f} ({end.seconds:.0f} s{where})"
        return TrialEnd(trial.number, " ".join(f"{key}={value}" for key, value in trial.params.items()), how)


def _record_pruned(folder: Path) -> None:
    """Let the record of a trial that was asked to stop say why; one that ended before it had a record has none."""
    if (folder / SUMMARY).exists():
        write_run(folder, replace(read_run(folder), status=PRUNED, error="others were better after as many epochs"))


def _tell(end: TrialEnd | None) -> None:
    if end is not None:
        log.info("trial %d %s: %s", end.number, end.values, end.how)


def as_overrides(arguments: Sequence[str]) -> list[str]:
    """A command line whose own keys of the search, in any spelling, became `search.key=value`; the rest as it is."""
    overrides, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        given, equals, _ = argument.removeprefix("--").partition("=")
        if given.replace("-", "_") in OWN and (equals or argument.startswith("--")):
            overrides.append("search.{}={}".format(*split_key(argument, OWN, rest)))
        elif argument.startswith("search.space="):  # the whole of it: a part would be added to what is there
            overrides += ["~search.space", f"+{argument}"]
        else:
            overrides.append(argument)
    return overrides


def read_search(config: DictConfig) -> SearchSchema:
    """What a search is asked to do, checked."""
    if config.get("search") is None:
        raise KdxError("search=null: what to search for is needed, e.g. experiment=search_kd")
    try:
        requested = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SearchSchema), config.search))
    except OmegaConfBaseException as error:
        raise KdxError("search." + explain_key(error)) from error
    assert isinstance(requested, SearchSchema)
    problems = Problems()
    check_backend("search.backend", requested.backend, problems)
    for key, space in requested.space.items():
        now = _value_of(config, key, default=problems)
        if now is problems:
            known = [name for name in flat_keys(config) if not name.startswith("search.")]
            problems.add("search.space", key, f"no such key{suggest(key, known)}")
        if not _is_space(space):
            needed = "{low, high, log} with low < high (above 0 if log), or {choices: [...]} is needed"
            problems.add(f"search.space.{key}", space, needed)
        elif isinstance(now, float):  # {low: 0, high: 1} of a real number is no two whole ones
            requested.space[key] = {k: float(v) if k in ("low", "high") else v for k, v in space.items()}
    problems.raise_if_any()
    return requested


def _value_of(config: DictConfig, key: str, default: Any) -> Any:
    """What a key is now: of a stage's own key of a group that the stage does not have yet, what it is for all."""
    found = OmegaConf.select(config, key, default=default)
    role, _, usual = key.removeprefix("stage.").partition(".")
    of_group = usual.split(".")[0] in GROUPS and "." in usual
    if found is default and key.startswith("stage.") and role in config.stage and of_group:
        return OmegaConf.select(config, usual, default=default)
    return found


def refuse_what_moves_the_measure(requested: SearchSchema, settings: Settings) -> None:
    """`KdxError` where a key of the space changes what trials are compared by: which score, or what a loss is."""
    stage = settings.stage(settings.deliver[-1])
    taught = stage.distilled or f"stage.{stage.role}.guide" in requested.space
    for key in requested.space:
        if key in ("select", f"stage.{stage.role}.select"):
            raise KdxError(f"search.space.{key}: what trials are compared by must be one thing; leave it out")
        if stage.recipe.select == LOSS and changes_loss(key, stage.role, taught):
            told = f"changes what the loss is, by which select={LOSS} of the {stage.role} compares trials"
            others = ", ".join(name for name in SELECTIONS if name != LOSS)
            raise KdxError(f"search.space.{key}: {told}; set select to one of {others}")


def _is_space(space: dict[str, Any]) -> bool:
    if set(space) == {"choices"}:
        return bool(space["choices"])
    rules: dict[str, ranges.Rule] = {"low": ranges.Real(), "high": ranges.Real(), "log": ranges.Flag()}
    space = {"log": False, **space}
    if set(space) != set(rules) or any(rule.problem(space[key]) is not None for key, rule in rules.items()):
        return False
    return space["low"] < space["high"] and (space["low"] > 0 or not space["log"])


def _open_study(requested: SearchSchema, folder: Path, seed: int, select: str) -> "optuna.Study":
    """The search's study in its sqlite file; trials that died with an earlier search are queued again.

    One that goes on draws other numbers than it drew before.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=requested.name,
        storage=f"sqlite:///{folder / 'study.db'}",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3) if requested.prune else optuna.pruners.NopPruner(),
        direction="minimize" if select == LOSS else "maximize",
        load_if_exists=True,
    )
    begun = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed + begun)
    for dead in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(dead.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(dead.params, user_attrs={INSTEAD_OF: dead.number})
    return study


def _places_in(space: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Overrides of some places in the space, the same ones for every search of it: each choice is in one of them."""
    values = {key: given.get("choices", [given.get("low")]) for key, given in space.items()}
    first = {key: choices[0] for key, choices in values.items()}
    places = [first, *(first | {key: value} for key, choices in values.items() for value in choices[1:])]
    return [[_override(key, value) for key, value in place.items()] for place in places]


def _override(key: str, value: Any) -> str:
    """A value of the space as on the command line; a text that would mean something else there in quotes."""
    if isinstance(value, str) and not re.fullmatch(r"[\w.+\-/:]*|\[.*\]|\{.*\}", value):
        return f"{key}={quoted(value)}"
    return f"{key}={'null' if value is None else value}"


def _refuse_other_search(study: "optuna.Study", stages: list[dict[str, str]], folder: Path) -> None:
    """Everything but the space makes a search what it is: `KdxError` where earlier trials trained other stages."""
    known = study.user_attrs.get(STAGES)
    if known is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(STAGES, stages)
    elif known != stages:
        pairs = zip(known or [], stages, strict=False)
        differ = {role for old, new in pairs for role in new if old.get(role) != new[role]}
        what = f"another {', '.join(sorted(differ))}" if differ else "other stages"
        raise KdxError(
            f"search.name={study.study_name}: {folder} holds a search with {what} (settings, code or data differ); "
            "choose another name"
        )


def _trials_left(study: "optuna.Study", requested: SearchSchema) -> int:
    """How many trials are still to end well or be pruned; none once as many have failed, lest it goes on for ever."""
    trials = study.get_trials(deepcopy=False)
    states = [trial.state.name for trial in trials]
    failed = states.count("FAIL") - sum(INSTEAD_OF in trial.user_attrs for trial in trials)  # the dead did not fail
    return 0 if failed >= requested.trials else requested.trials - states.count("COMPLETE") - states.count("PRUNED")


def _propose(trial: "optuna.Trial", key: str, space: dict[str, Any]) -> Any:
    if "choices" in space:
        return trial.suggest_categorical(key, list(space["choices"]))
    low, high = space["low"], space["high"]
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, log=space.get("log", False))
    return trial.suggest_float(key, low, high, log=space.get("log", False))


def _falls_behind(trial: "optuna.Trial", job: Job, role: str, select: str) -> bool:
    """Tell the pruner the epochs of the job's last stage so far; whether it wants the trial to stop."""
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for row in read_log(job.folder / role):
        usual = AUC if "val_auc" in row else ACCURACY  # auto: only where the area chooses is it in the log
        column = f"val_{SCORES[usual if select == AUTO else select]}"
        if int(row["epoch"]) not in known and column in row:
            trial.report(row[column], int(row["epoch"]))
    return trial.should_prune()


def main() -> None:
    cli.share_processors()
    with cli.one_line_errors(CONF) as command:
        if asks_for_help(sys.argv[1:]):
            print(USAGE.strip())
            return
        refuse_torchrun("leave it out of a search, whose trials take devices=2")
        command.answers = False  # the study and the report have all that is printed
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(cli.HarmlessFormatter("%(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[console])
        if importlib.util.find_spec("optuna") is None:
            raise KdxError('the search needs optuna: pip install -e ".[search]" in the checkout of kdx')
        config, base, overrides = compose_line(CONF, as_overrides(sys.argv[1:]))
        settings, requested = read_settings(config), read_search(config)
        program = Program(run_main, CONF, tuple(base), compose_jobs)
        try:
            folder = search(requested, settings, program, overrides)
        except ValueError as error:  # optuna's word for a space that changed under an old search's name
            raise KdxError(f"search.name={requested.name}: {error}; choose another name or space") from error
        print(write_report(folder))
        if not (load_sweep(folder)["status"] == "finished").any():
            raise KdxError(f"search.name={requested.name}: no trial ended well; see {folder}")


if __name__ == "__main__":
    main()
