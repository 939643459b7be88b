"""Run a chain: carry its plan out, teachers first, and tell it in summary.json."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kdx.chain.context import RunContext, load_dataset, make_run_context
from kdx.chain.fingerprints import network_code
from kdx.chain.finished import run_that_stays
from kdx.chain.foreign import file_import
from kdx.chain.index import FinishedStage, StageIndex, own_folder
from kdx.chain.loaded import LoadedStage, load_network
from kdx.chain.plan import PlannedStage, check_plan, describe_plan, make_plan, reuse_finished
from kdx.chain.record import RunRecord
from kdx.chain.stage import FinishedTeacher, Outcome, scores_on_test, train_stage
from kdx.chain.start import Start, start_of_file
from kdx.chain.team import Team, team_of, threads_divided
from kdx.checkpoint import load_checkpoint, weights_of
from kdx.config.schema import Settings, StageSettings
from kdx.data.decoding import worker_errors
from kdx.data.description import log_description
from kdx.files import from_here, make_folder
from kdx.memory import full_cleanup, keep_freed_memory
from kdx.models.networks import count_parameters
from kdx.report.run import write_run_report
from kdx.report.tables import stage_table
from kdx.torchrun import Followers, refuse_torchrun
from kdx.training.distributed import Ranks
from kdx.training.stopping import StopRequest, listening
from kdx.users_code import users_errors

log = logging.getLogger(__name__)


def run_chain(
    settings: Settings, run_dir: Path, overrides: Sequence[str] = (), followers: Followers | None = None
) -> float | None:
    """Deliver the configured stages; the value that chose the last one's epoch (None when only planning).

    `followers` are the other ranks where torchrun has started them. Raises `KdxError` before the first training step
    for whatever in any stage cannot work.
    """
    if settings.torchrun is not None and followers is None:
        refuse_torchrun("leave torchrun out, and use devices")
    settings = threads_divided(settings)
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
    context = replace(context, ranks=Ranks(0, settings.world, settings.sync_batchnorm))
    with own_folder(run_dir), listening() as stop, team_of(context, stop.raise_if_asked, followers) as team:
        stays = run_that_stays(run_dir, plan)
        if stays is None:
            run = _Run(context, plan, index, run_dir, overrides, stop, loaded, team)
            with run.record.kept():
                for planned in plan:
                    run.carry_out(planned)
    stages = (stays or run.record.run).stages
    if stays is not None:
        log.info("the run in this folder was finished before; its record, which has more stages, stays")
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
        team: Team,
    ) -> None:
        self.context, self.plan, self.index, self.run_dir = context, plan, index, run_dir
        self.stop, self.loaded, self.team = stop, loaded, team
        self.done: dict[str, PlannedStage] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.record = RunRecord(context, plan, run_dir, overrides)

    def carry_out(self, intended: PlannedStage) -> None:
        """Train a stage under its teachers and file it in the index, or take one that exists; record it."""
        self.stop.raise_if_asked()
        self.record.write("running")
        with users_errors(intended.role), worker_errors(self.context.settings.num_workers):
            with self.turn(intended) as (planned, earlier):
                if planned.action == "train":
                    folder, own, teachers = self.run_dir / planned.role, planned.fingerprint, self.teachers_of(planned)
                    with self.team.training(planned.stage, self.checkpoints_of_teachers(planned)):
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
            self.record.add(planned, outcome, lambda: self.load(planned, outcome.checkpoint).network)
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
        if planned.finished is not None:
            done, parameters = planned.finished, count_parameters(loaded.network)
            filed = (done.sha256, done.epoch, done.validation, done.test, parameters, 0.0, loaded.guide_fingerprint)
            return Outcome(self.index.path_of(done), *filed)
        if planned.action == "import":
            folder = self.run_dir / planned.role
            outcome = file_import(self.context, planned.stage, folder, loaded, planned.fingerprint, planned.source)
            if loaded.sound:
                self.file(planned, outcome)
            return outcome
        assert planned.checkpoint is not None
        test = scores_on_test(self.context, planned.stage, loaded.network) if loaded.classifies else {}
        return Outcome.of(loaded, planned.checkpoint, test)

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

    def checkpoints_of_teachers(self, planned: PlannedStage) -> dict[str, tuple[StageSettings, Path]]:
        """Where other ranks find who teaches a stage, by role."""
        return {role: (self.done[role].stage, self.outcomes[role].checkpoint) for role in planned.stage.teachers}

    def start_of(self, stage: StageSettings) -> Start | None:
        """The weights that a stage starts from, of a stage that is done or of a file."""
        if stage.start_role is None:
            return start_of_file(self.context, stage)
        checkpoint = self.outcomes[stage.start_role].checkpoint
        return Start(weights_of(load_checkpoint(checkpoint)), f"the {stage.start_role}")
