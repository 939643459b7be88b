"""Between Hydra and the chain: errors in one line, every job checked before the first starts. Imports no torch."""

import gc
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdx.compose import parse_line
from kdx.config.hydra_keys import check_hydra_keys
from kdx.config.paths import anchored
from kdx.config.settings import read_settings
from kdx.config.stage_overrides import from_hydra, to_hydra
from kdx.config_loader import composed, config_loader, refuse_several_options
from kdx.errors import BusyError, KdxError
from kdx.explain import explain
from kdx.process import JOB_THREADS, USER_ERROR, Running, command_process
from kdx.run_folder import FolderBefore
from kdx.text import harmless
from kdx.torchrun import Followers, refuse_torchrun
from kdx.training.stopping import Stopped
from kdx.users_code import reason_of, text_of, users_errors

log = logging.getLogger(__name__)

GO_ON = "; to go on, start the same command again (a single run with resume=true)"
BUSY = 75  # sysexits.h: try again later
OF_SEED = re.compile(r"\$\{[^}]*\bseed\b")  # an interpolation that looks it up
SPINS = 10_000  # tens of microseconds; libgomp's own choice is milliseconds


class BelowError(logging.Filter):
    """For the console's stdout handler: errors go to stderr."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR


class HarmlessFormatter(logging.Formatter):
    """For every handler: names of classes and files may hold what a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record), keep="\n\t")


class ReportAtEnd(Callback):
    """Writes the sweep's report for launchers that are not kdx's own, such as submitit's."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(str(config.hydra.sweep.dir))
        if not (folder / "report.html").exists():
            from kdx.report.sweep import write_report

            print(write_report(folder))


def share_processors() -> None:
    """Let threads that wait for others soon sleep, unless the environment says how they are to wait.

    Otherwise two trainings at once on the same processors take many times as long as one after the other: each spins
    where the other could compute. For libgomp, which torch computes with; only what is set before its import counts.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


@dataclass(frozen=True)
class Checked:
    """A command line whose jobs are sound. `answers`: it only prints help, a config or a plan.

    `before` is what a single run found in its folder.
    """

    answers: bool = False
    before: FolderBefore | None = None


def _take_share(config: DictConfig) -> list[str]:
    """Let a job whose config says nothing of `threads` compute with its share of them; what that is as an override."""
    share = os.environ.get(JOB_THREADS)
    if share is None or config.get("threads", "left out") is not None:
        return []
    config.threads = int(share)
    return [f"threads={share}"]


def run_job(config: DictConfig, before: FolderBefore | None, followers: Followers | None = None) -> float | None:
    """One job: its settings, then the chain. run.log has its errors too. `followers` are torchrun's other ranks.

    A single run that is refused or only plans leaves the folder as it was `before`.
    """
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    single = hydra_config.mode == RunMode.RUN
    overrides = list(map(from_hydra, _overrides(hydra_config)))
    share = _take_share(config)

    def leave(shared: bool = False) -> None:
        if before is not None:
            before.restore(run_dir, f"{hydra_config.job.name}.log", shared)

    try:
        start = Path(hydra_config.runtime.cwd)
        settings = read_settings(config if start == Path.cwd() else anchored(config, start))  # hydra.job.chdir=true
        from kdx.chain.chain import run_chain  # imports torch

        gc.freeze()  # what the imports made stays: every collection between stages would go through it, 0.3 s
        with users_errors():
            result = run_chain(settings, run_dir, [*overrides, *share], followers)
    except KdxError as error:
        _tell(str(error))
        if _wants_traceback() or not single:
            raise
        leave(isinstance(error, BusyError))
        raise SystemExit(BUSY if isinstance(error, BusyError) else USER_ERROR) from None  # past Hydra's own message
    except KeyboardInterrupt:
        leave()
        raise
    except Stopped as stopped:
        again = [*sys.argv[1:], *share, *([] if settings.resume else ["resume=true"])]
        program = "kdx" if followers is None else "torchrun ... -m kdx.run"
        log.info("%s; to go on: %s %s", stopped, program, shlex.join(again))
        raise SystemExit(stopped.exit_code) from None
    except BaseException as error:
        _tell(f"unexpected {reason_of(error)}", error)
        if not single:
            raise
        raise SystemExit(1) from None
    finally:
        gc.unfreeze()  # else native libraries report at exit what was not collected
    if settings.plan:
        leave()
    return result


def _tell(error: str, cause: BaseException | None = None) -> None:
    """An error on stderr, whatever the user's job_logging is; with the traceback of a `cause` that nobody foresaw."""
    log.error("error: %s", error, exc_info=cause)
    root: Sequence[logging.Handler | None] = logging.getLogger().handlers
    handlers = root or [logging.lastResort]  # which prints where there is no other
    shown = any(isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr for handler in handlers)
    if not shown or not log.isEnabledFor(logging.ERROR):
        if cause is not None:
            traceback.print_exception(cause)
        print(f"error: {harmless(error)}", file=sys.stderr)


@contextmanager
def one_line_errors(conf: Path) -> Iterator[Running]:
    """Tell what a user can put right in one line; HYDRA_FULL_ERROR=1 shows the traceback as ever."""
    before = {name: os.environ.get(name) for name in ("HYDRA_FULL_ERROR", "KDX_TRACEBACK")}
    asked = before["KDX_TRACEBACK"] or before["HYDRA_FULL_ERROR"] or "0"  # a job of a sweep asks for its parent's
    os.environ |= {"KDX_TRACEBACK": asked, "HYDRA_FULL_ERROR": "1"}  # Hydra then raises its errors instead of printing
    try:
        with command_process(GO_ON) as command:
            try:
                yield command
            except (KdxError, HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
                if asked == "1":
                    raise
                print(f"error: {harmless(explain(error, conf, sys.argv[1:]))}", file=sys.stderr)
                raise SystemExit(USER_ERROR) from None
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def hydra_errors(before: FolderBefore | None) -> Iterator[None]:
    """What Hydra meets when it sets logging up is about a key of its own; the run's folder is as it was `before`."""
    try:
        yield
    except Exception as error:
        frames = {frame.f_code.co_name: frame for frame, _ in traceback.walk_tb(error.__traceback__)}
        if "configure_log" not in frames:
            raise
        if before is not None and "run_job" in frames:  # where the folder was: HydraConfig is cleared by now
            config = frames["run_job"].f_locals["config"].hydra
            before.restore(Path(config.runtime.output_dir), f"{config.job.name}.log", shared=False)
        cause = "" if error.__cause__ is None else f": {error.__cause__}"
        key = "job_logging" if "run_job" in frames else "hydra_logging"
        raise KdxError(f"hydra.{key}: {text_of(error)}{cause}") from error


def check_jobs(conf: Path, arguments: Sequence[str] | None = None) -> Checked:
    """Compose and check the config of every job of the command line, so that nothing starts if one is wrong."""
    args = parse_line(conf, sys.argv[1:] if arguments is None else arguments)
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        return Checked(answers=True)
    if "~hydra/job_logging" in args.overrides:
        raise KdxError("~hydra/job_logging: it is needed; write hydra/job_logging=none to do without")
    with config_loader(conf, args.config_dir) as loader:
        name = args.config_name or "config"
        mode = RunMode.MULTIRUN if args.multirun else RunMode.RUN
        config = composed(loader, name, args.overrides, run_mode=mode)
        if mode == RunMode.RUN and config.hydra.mode != RunMode.MULTIRUN:
            if config.hydra.sweeper.get("params"):
                print("warning: hydra.sweeper.params is ignored without --multirun", file=sys.stderr)
            settings = read_settings(config)
            if config.get("search") is not None:
                print("warning: search is ignored; python -m kdx.search searches", file=sys.stderr)
            check_hydra_keys(config)
            return Checked(settings.plan, _folder_before(config))
        if mode == RunMode.RUN:  # an experiment file may say so
            config = composed(loader, name, args.overrides, run_mode=RunMode.MULTIRUN)
        folder = ["--config-dir", args.config_dir] if args.config_dir else []
        _check_sweep(loader, config, conf, [*folder, "--config-name", name])
    return Checked()


def _overrides(hydra: Any) -> list[str]:
    """The overrides of a job as they were typed: a `${...}` in one is not looked up, which a later one may replace."""
    typed: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return list(map(str, typed))


def _folder_before(config: DictConfig) -> FolderBefore | None:
    """What a run finds in its folder; unknown where the folder's name depends on what Hydra only knows later."""
    try:
        return FolderBefore.of(Path(str(config.hydra.run.dir)))
    except OmegaConfBaseException:
        return None


def _check_sweep(loader: Any, config: DictConfig, conf: Path, base: Sequence[str]) -> None:
    """`KdxError` for the first job that is wrong; `base` is the part of the command line that all jobs share."""
    refuse_torchrun(
        "leave it out of a sweep, whose jobs take devices=2, or gpu_ids and n_jobs of hydra/launcher=joblib"
    )
    if config.plan:
        raise KdxError("plan=true: plans one run; leave --multirun out")
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    subdir = sweep["subdir"]
    if subdir != "${hydra.job.num}":
        raise KdxError(f"hydra.sweep.subdir={subdir}: each job's folder is its number; choose hydra.sweep.dir only")
    check_hydra_keys(config)
    _check_plugin("launcher", config.hydra.launcher)
    _check_plugin("sweeper", config.hydra.sweeper)
    if "BasicSweeper" not in config.hydra.sweeper._target_:
        return  # other sweepers choose their jobs as they go
    params = [to_hydra(f"{key}={value}") for key, value in (config.hydra.sweeper.params or {}).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *_overrides(config.hydra)])
    tied: dict[tuple[str, ...], bool] = {}  # by all but the seed: whether something of the job refers to the seed
    seen: set[tuple[str, ...]] = set()
    for overrides in BasicSweeper.split_arguments(parsed, None)[0]:
        seeds = tuple(override for override in overrides if override.startswith("seed="))
        others = tuple(override for override in overrides if override not in seeds)
        if seeds in seen and not tied.get(others, True):
            continue  # it differs in the seed alone from one that is sound, and a check takes a quarter of a second
        try:
            refuse_several_options(loader, overrides)
            job = loader.load_sweep_config(config, list(overrides))
            tied[others] = OF_SEED.search(str(OmegaConf.to_container(job, resolve=False))) is not None
            read_settings(job)
        except (KdxError, HydraException, OmegaConfBaseException) as error:
            told = explain(error, conf, [*base, *overrides])
            raise KdxError(f"{told} (in the job {' '.join(map(from_hydra, overrides))})") from error
        seen.add(seeds)


def _check_plugin(group: str, node: Any) -> None:
    known = Plugins.instance().class_name_to_class
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target not in known:
        raise KdxError(f"hydra.{group}._target_={target}: no such plugin of Hydra's; choose hydra/{group}=basic")


def _wants_traceback() -> bool:
    return os.environ.get("KDX_TRACEBACK") == "1"
