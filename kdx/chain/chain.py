"""Run a chain: carry its plan out, teachers first, and tell it in summary.json."""

import logging
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import kdx
from kdx.chain.context import (
    RunContext,
    as_recorded,
    load_dataset,
    make_run_context,
    network_code,
    network_spec,
    start_hash,
)
from kdx.chain.finished import refuse_other_run
from kdx.chain.foreign import file_import
from kdx.chain.index import FinishedStage, StageIndex, own_folder
from kdx.chain.plan import PlannedStage, check_plan, describe_plan, make_plan, reuse_finished
from kdx.chain.stage import FinishedTeacher, LoadedStage, Outcome, load_network, scores_on_test, train_stage
from kdx.chain.start import Start, start_of_file
from kdx.checkpoint import load_checkpoint, versions
from kdx.config.schema import Settings, StageSettings
from kdx.data.description import describe, log_description
from kdx.data.imagefolder import worker_errors
from kdx.deploy.efficiency import measure_network
from kdx.errors import KdxError
from kdx.files import from_here, hash_file, make_folder, relative
from kdx.memory import full_cleanup, keep_freed_memory
from kdx.metrics.selection import Selection
from kdx.models.networks import count_parameters
from kdx.report.run import write_run_report
from kdx.report.tables import stage_table
from kdx.results import Origin, PlanEntry, Run, ScoresOnTest, ScoresOnValidation, Stage, write_run
from kdx.training.stopping import Stopped, StopRequest, listening
from kdx.users_code import reason_of, users_errors

log = logging.getLogger(__name__)

STATUS = {"train": "trained", "reuse": "reused", "load": "loaded", "import": "imported"}


def run_chain(settings: Settings, run_dir: Path, overrides: Sequence[str] = ()) -> float | None:
    """Deliver the configured stages; the value that chose the last one's epoch (None when only planning).

    Raises `KdxError` before the first training step for whatever in any stage cannot work.
    """
    index = StageIndex(Path(settings.output_dir))
    context = make_run_context(settings, load_dataset(settings))
    if context.device.type == "cpu" and not settings.activation_checkpointing:  # which asks for little memory
        keep_freed_memory()
    plan = make_plan(context, index)
    log.info("%s", "\n".join(describe_plan(plan, len(context.dataset.unlabelled or ()))))
    log_description(context.dataset)
    loaded = check_plan(context, plan, run_dir)
    if settings.plan:
        return None
    make_folder(index.folder)
    with own_folder(run_dir), listening() as stop:
        refuse_other_run(run_dir, plan)
        run = _Run(context, plan, index, run_dir, overrides, stop, loaded)
        with run.recording():
            for planned in plan:
                run.carry_out(planned)
    stages = run.record.stages
    log.info("\n%s\n", stage_table(stages))
    if settings.report:
        log.info("%s\n", write_run_report(run_dir))
    log.info("results: %s", from_here(run_dir))
    return stages[plan[-1].role].selected


class _Run:
    """The stages of a plan under way in one run folder."""

    def __init__(
        self,
        context: RunContext,
        plan: Sequence[PlannedStage],
        index: StageIndex,
        run_dir: Path,
        overrides: Sequence[str],
        stop: StopRequest,
        loaded: dict[str, LoadedStage],
    ) -> None:
        self.context, self.plan, self.index, self.run_dir = context, plan, index, run_dir
        self.stop, self.loaded = stop, loaded
        self.done: dict[str, PlannedStage] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.record = Run(
            overrides=list(overrides),
            plan=[PlanEntry(s.role, s.action, s.fingerprint) for s in plan],
            surroundings=context.surroundings(),
            versions=versions(),
            git_commit=_git_commit(),
            class_names=list(context.dataset.class_names),
            data_notes=list(context.dataset.notes),
            seed=context.settings.seed,
            lineage=[Origin("data", context.dataset.name, context.dataset.digest)],
        )
        pictures = context.dataset.unlabelled
        if pictures is not None:
            self.record.data_notes.append(describe(context.dataset)[-1])
            self.record.lineage.append(Origin("unlabelled", Path(pictures.folder).name, pictures.digest))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Write summary.json at the end of a block, whatever ends it."""
        try:
            yield
        except Stopped as stopped:
            self.write_summary("stopped", str(stopped))
            raise
        except BaseException as error:
            self.write_summary("failed", str(error) if isinstance(error, KdxError) else reason_of(error))
            raise
        self.write_summary("finished")

    def carry_out(self, intended: PlannedStage) -> None:
        """Train a stage under its teachers and file it in the index, or take one that exists; record it."""
        self.stop.raise_if_asked()
        self.write_summary("running")
        with users_errors(intended.role), worker_errors(self.context.settings.num_workers):
            with self.turn(intended) as (planned, earlier):
                if planned.action == "train":
                    folder, own, teachers = self.run_dir / planned.role, planned.fingerprint, self.teachers_of(planned)
                    outcome = train_stage(
                        self.context,
                        planned.stage,
                        folder,
                        own=own,
                        teachers=teachers,
                        start=self.start_of(planned.stage),
                        earlier=earlier,
                        stop=self.stop,
                    )
                    self.file(planned, outcome)
                else:
                    outcome = self.take(planned)
            self.done[planned.role], self.outcomes[planned.role] = planned, outcome
            self.describe(planned, outcome)
            self.forget_all_but(self.plan[len(self.done) :])
            full_cleanup()

    @contextmanager
    def turn(self, planned: PlannedStage) -> Iterator[tuple[PlannedStage, Path | None]]:
        """Wait while another run trains the same stage: then it is one to take. With it, the folder to resume from."""
        if planned.action != "train":
            yield planned, None
            return
        folder, stop = self.run_dir / planned.role, self.stop.raise_if_asked
        with self.index.claim(planned.fingerprint, planned.role, folder, stop) as (earlier, waited):
            reusable = waited or self.context.settings.reuse != "never"
            finished = self.index.find(planned.fingerprint) if reusable else None
            reuse = None if finished is None else reuse_finished(self.context, planned.stage, finished, self.index)
            yield reuse or planned, earlier if waited or self.context.settings.resume else None

    def file(self, planned: PlannedStage, outcome: Outcome) -> None:
        """Let other runs find a stage that is done."""
        self.index.add(
            FinishedStage(
                fingerprint=planned.fingerprint,
                role=planned.role,
                network=planned.stage.network,
                dataset=self.context.dataset.name,
                data_digest=self.context.dataset.digest,
                num_classes=self.context.dataset.num_classes,
                checkpoint=self.index.entry_path(outcome.checkpoint),
                sha256=outcome.sha256,
                epoch=outcome.epoch,
                validation=outcome.validation,
                test=outcome.test,
                seconds=outcome.seconds,
                finished=datetime.now(UTC).isoformat(),
                surroundings=self.context.surroundings(),
                code=network_code(self.context, planned.stage),
            )
        )

    def take(self, planned: PlannedStage) -> Outcome:
        """The outcome of a stage that exists: as filed, or tested now if it is a named file."""
        loaded = self.load(planned, planned.checkpoint or self.run_dir)
        parameters, guide = count_parameters(loaded.network), loaded.guide_fingerprint
        if planned.finished is not None:
            done = planned.finished
            return Outcome(
                self.index.path_of(done), done.sha256, done.epoch, done.validation, done.test, parameters, 0.0, guide
            )
        if planned.action == "import":
            folder = self.run_dir / planned.role
            outcome = file_import(self.context, planned.stage, folder, loaded, planned.fingerprint, planned.source)
            if loaded.sound:
                self.file(planned, outcome)
            return outcome
        assert planned.checkpoint is not None
        test = scores_on_test(self.context, planned.stage, loaded.network)
        return Outcome(planned.checkpoint, loaded.sha256, loaded.epoch, loaded.validation, test, parameters, 0.0, guide)

    def load(self, planned: PlannedStage, checkpoint: Path) -> LoadedStage:
        """A stage that is done, from its checkpoint unless it is still here."""
        if planned.role not in self.loaded:
            self.loaded[planned.role] = load_network(self.context, planned.stage, checkpoint)
        return self.loaded[planned.role]

    def forget_all_but(self, stages: Sequence[PlannedStage]) -> None:
        """Free the networks that these stages, which are to come, neither take nor are taught by."""
        needed = {planned.role for planned in stages}
        needed |= {role for planned in stages if planned.action == "train" for role in planned.stage.teachers}
        for role in self.loaded.keys() - needed:
            del self.loaded[role]

    def teachers_of(self, planned: PlannedStage) -> dict[str, FinishedTeacher]:
        """Who teaches a stage, by role."""
        teachers = {}
        for role in planned.stage.teachers:
            outcome = self.outcomes[role]
            network = self.load(self.done[role], outcome.checkpoint).network
            del self.loaded[role]  # it may be compiled for this stage: who teaches another one is loaded again
            teachers[role] = FinishedTeacher(network, self.done[role].fingerprint, outcome.sha256)
        return teachers

    def start_of(self, stage: StageSettings) -> Start | None:
        """The weights that a stage starts from, of a stage that is done or of a file."""
        if stage.start_role is None:
            return start_of_file(self.context, stage)
        checkpoint = self.outcomes[stage.start_role].checkpoint
        return Start(load_checkpoint(checkpoint)["model"], f"the {stage.start_role}")

    def describe(self, planned: PlannedStage, outcome: Outcome) -> None:
        """Record a stage that is done."""
        if planned.source is not None:
            self.record.lineage.append(Origin("file", planned.source.name, hash_file(planned.source)))
        if planned.stage.start is not None and planned.action == "train":
            self.record.lineage.append(Origin("start", Path(planned.stage.start).name, start_hash(planned.stage) or ""))
        self.record.lineage.append(Origin(planned.role, planned.stage.network, outcome.sha256))
        if not planned.stage.head:  # no scores: it is told by the plan and here
            return
        self.record.stages[planned.role] = Stage(
            network=planned.stage.network,
            stem=network_spec(self.context, planned.stage).stem,
            status=STATUS[planned.action],
            fingerprint=planned.fingerprint,
            selected_by=Selection.resolve(planned.stage.recipe.select, self.context.dataset.task).name,
            guide=as_recorded(planned.stage.teachers),
            start=planned.stage.start_role or (planned.stage.start and Path(planned.stage.start).name),
            guide_fingerprint=outcome.guide_fingerprint,
            checkpoint=relative(outcome.checkpoint, self.run_dir),
            sha256=outcome.sha256,
            epoch=outcome.epoch,
            parameters=outcome.parameters,
            validation=cast(ScoresOnValidation, outcome.validation),
            test=cast(ScoresOnTest, outcome.test),
            seconds=round(outcome.seconds, 3),
            checkpoint_mb=outcome.checkpoint.stat().st_size / 1e6,
            efficiency=self.costs_of(planned, outcome),
        )

    def costs_of(self, planned: PlannedStage, outcome: Outcome) -> dict[str, Any] | None:
        """What the stage's network costs to use, where a report is wanted."""
        if not self.context.settings.report:
            return None
        network = self.load(planned, outcome.checkpoint).network
        spec, (height, width) = network_spec(self.context, planned.stage), self.context.input_size
        try:
            return measure_network(network, (spec.in_channels, height, width), self.context.device)
        except (RuntimeError, MemoryError) as error:  # a batch of 64 may not fit; the result stands without it
            log.warning("the costs of the %s cannot be measured: %s", planned.role, str(error).split("\n")[0])
            return None

    def write_summary(self, status: str, error: str | None = None) -> None:
        """Write summary.json; each role that is done is a key of its own."""
        write_run(self.run_dir, replace(self.record, status=status, error=error))


def _git_commit() -> str | None:
    """The commit of kdx's own checkout, with `+` if it was changed since; None outside of one."""
    package = Path(kdx.__file__).resolve().parent
    answers = []
    for ask in ("rev-parse --show-prefix", "rev-parse HEAD", "status --porcelain --untracked-files=no"):
        command = ["git", "-C", str(package), *ask.split()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(done.stdout.strip())
    prefix, commit, changes = answers
    return None if prefix != "kdx/" else commit + ("+" if changes else "")
