"""Hydra's hook for kdx's own launcher; Hydra accepts launchers from the package `hydra_plugins` only."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

from kdx.compose import compose_jobs
from kdx.config.schema import DASK
from kdx.config.stage_overrides import from_hydra
from kdx.errors import KdxError
from kdx.report.sweep import write_report
from kdx.sweeps.board import Board
from kdx.sweeps.costs import measure_costs
from kdx.sweeps.jobs import Job, JobEnd, Program, config_arguments
from kdx.sweeps.launch import Launch, executors
from kdx.sweeps.pages import live_pages, write_job_pages
from kdx.sweeps.scout import refuse_other_plans
from kdx.sweeps.sweep import run_sweep

log = logging.getLogger(__name__)


@dataclass
class ParallelConfig(JobLibLauncherConf):
    """`hydra/launcher=joblib`: several jobs at a time, each in a process of its own, with the keys of joblib's."""

    _target_: str = "hydra_plugins.kdx_launcher.ProcessLauncher"
    n_jobs: int = -1  # jobs at a time; -1 = one a processor, or one a GPU where gpu_ids are given
    gpu_ids: list[int] | None = None  # e.g. [0, 1]: the jobs are spread over these devices


@dataclass
class LauncherConfig(ParallelConfig):
    """`hydra/launcher=basic`, the default: one after the other."""

    n_jobs: int = 1


# In the place of Hydra's launcher and of joblib's, with which one bad job ends the sweep: what is stored last counts.
for name, node in (("basic", LauncherConfig), ("joblib", ParallelConfig)):
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="kdx")


class ProcessLauncher(JoblibLauncher):
    """Runs each job as `kdx <overrides>` in a process of its own and writes the sweep's report.

    Built with the fields of `ParallelConfig`, which its base class keeps as `joblib`.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        assert self.config is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        sweep_dir = Path(str(self.config.hydra.sweep.dir))
        jobs = [
            Job(initial_job_idx + index, tuple(map(from_hydra, overrides)), sweep_dir / str(initial_job_idx + index))
            for index, overrides in enumerate(job_overrides)
        ]
        from kdx.run import CONF, main

        program = Program(partial(main, check=False), CONF, tuple(config_arguments(self.config)), compose_jobs)
        refuse_other_plans(program, jobs)
        board = Board(sweep_dir, jobs)
        launch = launch_of(self.joblib)
        with executors(program, launch, len(board.unfinished()), sweep_dir) as executor:
            try:
                with live_pages(sweep_dir, self.config.report):
                    run_sweep(board, program, launch, executor)
                if self.config.report:
                    measure_costs(sweep_dir, own=True)
                    write_job_pages(sweep_dir)
            finally:
                log.info("%s", write_report(sweep_dir))  # also after an interrupt: what is done is told
        ends = board.ends()
        failed = sum(end.reason is not None for end in ends)
        if failed and "BasicSweeper" in self.config.hydra.sweeper._target_:  # others learn from each job's return
            raise KdxError(f"{failed} of {len(jobs)} jobs failed; see {sweep_dir / 'sweep.md'}")
        return [self._job_return(job, end) for job, end in zip(jobs, ends, strict=True)]

    def _job_return(self, job: Job, end: JobEnd) -> JobReturn:
        result = JobReturn()
        result.overrides = list(job.overrides)
        result.working_dir = str(job.folder)
        result.status = JobStatus.COMPLETED if end.reason is None else JobStatus.FAILED
        result.return_value = end.value if end.reason is None else KdxError(end.reason)
        return result


def launch_of(keys: Mapping[str, Any]) -> Launch:
    """How jobs are to be run, from the launcher's keys; those that joblib takes as numbers or texts become numbers."""
    options = dict(keys)
    n_jobs, gpu_ids, timeout = options.pop("n_jobs"), options.pop("gpu_ids"), options.pop("timeout")
    for name in ("pre_dispatch", "batch_size", "max_nbytes"):
        if str(options[name]).isdigit():
            options[name] = int(options[name])
    return Launch(n_jobs, tuple(gpu_ids or ()), timeout, options, cluster=options["backend"] == DASK)
