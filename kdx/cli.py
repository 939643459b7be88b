"""Between Hydra and the chain: errors in one line, every job checked before the first starts. Imports no torch."""

import argparse
import gc
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra import version
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdx.config.paths import anchored
from kdx.config.schema import DatasetSchema, Settings
from kdx.config.settings import check_hydra_keys, flat_keys, read_settings
from kdx.config.stage_overrides import from_hydra, to_hydra
from kdx.config.swap_points import SWAP_POINTS
from kdx.errors import BusyError, KdxError, suggest
from kdx.process import USER_ERROR, Running, command_process
from kdx.run_folder import FolderBefore
from kdx.text import harmless
from kdx.training.stopping import Stopped
from kdx.users_code import reason_of, text_of, users_errors

log = logging.getLogger(__name__)

HYDRA_VERSION = "1.3"
GO_ON = "; to go on, start the same command again (a single run with resume=true)"
BUSY = 75  # sysexits.h: try again later
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


def run_job(config: DictConfig, before: FolderBefore | None) -> float | None:
    """One job: its settings, then the chain. run.log has its errors too.

    A single run that is refused or only plans leaves the folder as it was `before`.
    """
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    single = hydra_config.mode == RunMode.RUN

    def leave(shared: bool = False) -> None:
        if before is not None:
            before.restore(run_dir, f"{hydra_config.job.name}.log", shared)

    try:
        start = Path(hydra_config.runtime.cwd)
        settings = read_settings(config if start == Path.cwd() else anchored(config, start))  # hydra.job.chdir=true
        from kdx.chain.chain import run_chain  # imports torch

        gc.freeze()  # what the imports made stays: every collection between stages would go through it, 0.3 s
        with users_errors():
            result = run_chain(settings, run_dir, list(map(from_hydra, hydra_config.overrides.task)))
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
        again = [*sys.argv[1:], *([] if settings.resume else ["resume=true"])]
        log.info("%s; to go on: kdx %s", stopped, shlex.join(again))
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
    args = _parse(conf, sys.argv[1:] if arguments is None else arguments)
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        return Checked(answers=True)
    if "~hydra/job_logging" in args.overrides:
        raise KdxError("~hydra/job_logging: it is needed; write hydra/job_logging=none to do without")
    with _loader(conf, args.config_dir) as loader:
        name = args.config_name or "config"
        mode = RunMode.MULTIRUN if args.multirun else RunMode.RUN
        config = _compose(loader, name, args.overrides, run_mode=mode)
        if mode == RunMode.RUN and config.hydra.mode != RunMode.MULTIRUN:
            if config.hydra.sweeper.get("params"):
                print("warning: hydra.sweeper.params is ignored without --multirun", file=sys.stderr)
            settings = read_settings(config)
            check_hydra_keys(config)
            return Checked(settings.plan, _folder_before(config))
        if mode == RunMode.RUN:  # an experiment file may say so
            config = _compose(loader, name, args.overrides, run_mode=RunMode.MULTIRUN)
        _check_sweep(loader, config)
    return Checked()


def _folder_before(config: DictConfig) -> FolderBefore | None:
    """What a run finds in its folder; unknown where the folder's name depends on what Hydra only knows later."""
    try:
        return FolderBefore.of(Path(str(config.hydra.run.dir)))
    except OmegaConfBaseException:
        return None


def _check_sweep(loader: Any, config: DictConfig) -> None:
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
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *config.hydra.overrides.task])
    for overrides in BasicSweeper.split_arguments(parsed, None)[0]:
        job = loader.load_sweep_config(config, list(overrides))
        try:
            read_settings(job)
        except KdxError as error:
            raise KdxError(f"{error} (in the job {' '.join(map(from_hydra, overrides))})") from error


def _check_plugin(group: str, node: Any) -> None:
    known = Plugins.instance().class_name_to_class
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target not in known:
        raise KdxError(f"hydra.{group}._target_={target}: no such plugin of Hydra's; choose hydra/{group}=basic")


def compose_jobs(conf: Path, base: Sequence[str], jobs: Sequence[Sequence[str]]) -> list[Settings]:
    """The settings of a sweep's jobs; `base` is the part of the command line that all have in common."""
    args = get_args_parser().parse_args(list(base))
    if "~hydra/job_logging" in args.overrides:
        raise KdxError("~hydra/job_logging: it is needed; write hydra/job_logging=none to do without")
    with _loader(conf, args.config_dir) as loader:
        name = args.config_name or "config"
        lines = [[*args.overrides, *map(to_hydra, job)] for job in jobs]
        configs = [_compose(loader, name, line, run_mode=RunMode.RUN) for line in lines]
    return [read_settings(config) for config in configs]


def compose_one(conf: Path, base: Sequence[str], overrides: Sequence[str]) -> Settings:
    """The settings of one run, for a command that is not Hydra's: whatever is wrong with them is a `KdxError`."""
    try:
        (settings,) = compose_jobs(conf, base, [overrides])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        raise KdxError(explain(error, conf, overrides)) from error
    return settings


def compose_line(conf: Path, arguments: Sequence[str]) -> tuple[DictConfig, list[str], list[str]]:
    """A command line's config, the part of it with which a job finds the same files, and its overrides."""
    args = _parse(conf, arguments)
    kept = {"overrides", "config_name", "config_dir"}
    for option, value in vars(args).items():
        if value not in (None, False) and option not in kept:
            raise KdxError(f"--{option.replace('_', '-')}: has no meaning here; choose --config-dir, --config-name")
    base = ["--config-name", args.config_name or "config"]
    if args.config_dir:
        base += ["--config-dir", str(Path(args.config_dir).resolve())]
    with _loader(conf, args.config_dir) as loader:
        config = _compose(loader, args.config_name or "config", args.overrides, run_mode=RunMode.RUN)
    return config, base, list(map(from_hydra, args.overrides))


def compose_run(conf: Path, arguments: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The config of one run and its overrides; whatever is wrong with them is a `KdxError`."""
    try:
        config, _, overrides = compose_line(conf, arguments)
        check_hydra_keys(config)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        raise KdxError(explain(error, conf, arguments)) from error
    return config, overrides


def options_first(arguments: Sequence[str]) -> list[str]:
    """A command line as Hydra reads it: overrides in a row, also where an option is between, `kd=none -m seed=1,2`.

    Overrides of one stage are put in Hydra's words.
    """
    args, unknown = _known_args(arguments)
    overrides = [*args.overrides, *(word for word in unknown if not word.startswith("-"))]
    options = list(arguments)
    for word in overrides:
        options.remove(word)
    return [*options, *map(to_hydra, overrides)]


def _parse(conf: Path, arguments: Sequence[str]) -> argparse.Namespace:
    """A command line's options and overrides; `KdxError` for an option that there is not or that cannot be used."""
    args, unknown = _known_args(options_first(arguments))
    if unknown:
        raise KdxError(f"unknown option {unknown[0]}: {_as_override(unknown[0], conf)}")
    if args.experimental_rerun is not None:
        raise KdxError("--experimental-rerun: starts what a pickle holds; use the run's command, in summary.json")
    if args.config_path is not None:
        raise KdxError("--config-path: kdx needs its own configs; add yours with --config-dir")
    chosen = [name for name in ("run", "cfg", "multirun", "shell_completion", "info") if getattr(args, name)]
    if len(chosen) > 1:
        raise KdxError(f"{' '.join('--' + name.replace('_', '-') for name in chosen)}: choose one")
    if args.resolve and not (args.cfg or args.help):
        raise KdxError("--resolve: only with --cfg or --help")
    return args


def _known_args(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What Hydra's parser knows of a command line, and the words that it does not."""

    def refuse(message: str) -> NoReturn:
        raise KdxError(f"{message.removeprefix('argument ')}; see kdx --hydra-help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]  # instead of the usage of every option
    return parser.parse_known_args(list(arguments))


def explain(error: Exception, conf: Path, overrides: Sequence[str] = ()) -> str:
    """An error of ours or Hydra's as one line with the choices or the near miss, among the keys of what is chosen."""
    if isinstance(error, KdxError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # Hydra makes the run's folder itself
        return f"{error.filename}: {error.strerror}; choose another output_dir"
    cause = error.__cause__ if str(error).startswith("Error merging override") else None
    lines = [line.strip() for line in f"{error}\n{cause or ''}".splitlines() if line.strip()]
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = [o for o in error.options if not o.startswith("_")]
        return f"{group}={option}: no such option{suggest(option, options)} choose {', '.join(options)}".replace(
            "option choose", "option; choose"
        )
    if isinstance(error, OverrideParseException) and "missing EQUAL" in str(error):
        return f"{error.override}: a value is missing, write {error.override}=VALUE"
    if lines[0].startswith("Error merging override ") and "Cannot merge" in str(error.__cause__):
        override = lines[0].removeprefix("Error merging override ").lstrip("+")
        key = override.partition("=")[0]
        return f"{override}: does not go into what is there already; write {shlex.join([f'~{key}', f'+{override}'])}"
    if lines[0].startswith("Error merging override hydra.launcher.") and isinstance(cause, OmegaConfBaseException):
        return f"{lines[0].removeprefix('Error merging override ')}: {str(cause).splitlines()[0]}"
    if lines[0].startswith("Could not override '"):
        key, known = lines[0].split("'")[1], all_keys(conf, overrides)
        if key in known:
            return f"{key}: the value holds keys that are not there yet; add each with +{key}.<key>=<value>"
        group = key.rpartition(".")[0]
        optional = [] if group == "kd" and "kd.terms" in known else _optional_keys(group)  # those are of each term
        if key in optional:
            return f"{key}: not among the keys of the chosen option; write +{key}=VALUE to add it"
        return f"{key}: no such key{suggest(key, [*known, *optional])}"
    return " ".join(lines)


def _optional_keys(group: str) -> list[str]:
    """The keys of a group that kdx knows and the files in conf may leave out."""
    names = DatasetSchema.__dataclass_fields__ if group == "dataset" else SWAP_POINTS.get(group, {})
    return [f"{group}.{name}" for name in names]


def add_plugins() -> None:
    """Let Hydra find kdx's launcher, whether kdx is installed or not; also in processes that other launchers start."""
    folder = str(Path(__file__).resolve().parent / "plugins")
    if folder not in sys.path:
        sys.path.append(folder)
    inherited = os.environ.get("PYTHONPATH", "")
    if folder not in inherited.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (inherited, folder)))


def all_keys(conf: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Every dotted key and every group of the default config, with kdx's own options that overrides choose."""
    with _loader(conf, None) as loader:
        pairs = [(override, *override.partition("=")[::2]) for override in overrides]
        groups = loader.list_groups("")
        chosen = [o for o, group, option in pairs if group in groups and option in loader.get_group_options(group)]
        config = _compose(loader, "config", chosen, run_mode=RunMode.RUN)
        keys = sorted(flat_keys(config), key=lambda key: key.startswith("hydra"))  # our own before Hydra's
        return [*loader.list_groups(""), *keys]


def _as_override(option: str, conf: Path) -> str:
    word = option.lstrip("-").split("=")[0].replace("-", "_")
    keys = all_keys(conf)
    by_end = [key for key in keys if key.rsplit(".", 1)[-1] == word]
    hint = suggest(word, keys) if not by_end else f"; did you mean {by_end[0]}=...?"
    return f"keys are written key=value, without dashes{hint}"


@contextmanager
def _loader(conf: Path, extra: str | None) -> Iterator[Any]:
    """Hydra's config loader as its own main would make it."""
    version.setbase(HYDRA_VERSION)
    add_plugins()
    search_path = create_config_search_path(str(conf))
    assert isinstance(search_path, ConfigSearchPathImpl)
    if extra is not None:
        folder = Path(extra).resolve()
        if not folder.is_dir():
            raise KdxError(f"--config-dir {extra}: no such folder")
        search_path.prepend("command-line", f"file://{folder}")
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("run", search_path).config_loader
    finally:
        GlobalHydra.instance().clear()


def _compose(loader: Any, name: str, overrides: list[str], run_mode: RunMode) -> DictConfig:
    """A composed config; what Hydra does not foresee in an override is an error of ours, too."""
    try:
        return loader.load_configuration(name, overrides, run_mode=run_mode)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError):
        raise
    except Exception as error:  # a group that is a number, a key of a key that is a number
        pairs = {override: override.lstrip("+~").partition("=")[::2] for override in overrides}
        groups = [o for o, (group, option) in pairs.items() if option not in loader.get_group_options(group)]
        where = " ".join([o for o in groups if pairs[o][0] in loader.list_groups("")] or overrides)
        raise KdxError(f"{where}: cannot be composed: {str(error) or type(error).__name__}") from error


def _wants_traceback() -> bool:
    return os.environ.get("KDX_TRACEBACK") == "1"
