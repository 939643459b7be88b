"""Hydra's hook for kdx's own launcher; Hydra accepts launchers from the package `hydra_plugins` only."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from kdx.cli import compose_jobs
from kdx.config.stage_overrides import from_hydra
from kdx.errors import KdxError
from kdx.report.sweep import write_report
from kdx.sweeps import jobs as sweep
from kdx.sweeps.costs import measure_costs
from kdx.sweeps.pages import live_pages, write_job_pages
from kdx.sweeps.scout import refuse_other_plans

log = logging.getLogger(__name__)


@dataclass
class LauncherConfig:
    """`hydra/launcher=basic`, the default: one job after the other, each in a process of its own."""

    _target_: str = "hydra_plugins.kdx_launcher.ProcessLauncher"
    n_jobs: int = 1  # jobs at a time; -1 = one a processor, or one a GPU where gpu_ids are given
    gpu_ids: list[int] | None = None  # e.g. [0, 1]: the jobs are spread over these devices


@dataclass
class ParallelConfig(LauncherConfig):
    """`hydra/launcher=joblib`: several at a time."""

    n_jobs: int = -1


# In the place of Hydra's launchers of these names, with which one bad job ends the sweep. Hydra imports plugins in
# alphabetical order: this one comes after hydra_joblib_launcher, if that is installed.
for name, node in (("basic", LauncherConfig), ("joblib", ParallelConfig)):
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="kdx")


class ProcessLauncher(Launcher):
    """Runs each job as `kdx <overrides>` in a process of its own and writes the sweep's report."""

    def __init__(self, n_jobs: int = 1, gpu_ids: Sequence[int] | None = None) -> None:
        self.n_jobs = n_jobs
        self.gpu_ids = gpu_ids

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        sweep_dir = Path(str(self.config.hydra.sweep.dir))
        jobs = [
            sweep.Job(
                initial_job_idx + index, tuple(map(from_hydra, overrides)), sweep_dir / str(initial_job_idx + index)
            )
            for index, overrides in enumerate(job_overrides)
        ]
        from kdx.run import CONF, main

        program = sweep.Program(
            partial(main, check=False), CONF, tuple(sweep.config_arguments(self.config)), compose_jobs
        )
        refuse_other_plans(program, jobs)
        board = sweep.Board(sweep_dir, jobs)
        try:
            with live_pages(sweep_dir, self.config.report):
                sweep.run_sweep(board, program, self.n_jobs, list(self.gpu_ids or []))
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

    def _job_return(self, job: "sweep.Job", end: "sweep.JobEnd") -> JobReturn:
        result = JobReturn()
        result.overrides = list(job.overrides)
        result.working_dir = str(job.folder)
        result.status = JobStatus.COMPLETED if end.reason is None else JobStatus.FAILED
        result.return_value = end.value if end.reason is None else KdxError(end.reason)
        return result
