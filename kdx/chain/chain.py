"""Run a chain: carry its plan out, guides first, and tell it in summary.json."""

import logging
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import kdx
from kdx.chain.context import Workplace, load_dataset, make_workplace, network_code, network_spec
from kdx.chain.finished import refuse_other_run
from kdx.chain.index import FinishedStage, StageIndex, own_folder
from kdx.chain.plan import Step, check_plan, describe_plan, make_plan, reuse_finished
from kdx.chain.stage import Guide, Loaded, Outcome, load_network, scores_on_test, train_stage
from kdx.checkpoint import versions
from kdx.config.schema import Settings
from kdx.data.description import log_description
from kdx.data.imagefolder import worker_errors
from kdx.deploy.efficiency import measure_network
from kdx.errors import KdxError
from kdx.files import make_folder, relative
from kdx.memory import full_cleanup, keep_freed_memory
from kdx.models.networks import count_parameters
from kdx.report.run import write_run_report
from kdx.report.tables import stage_table
from kdx.results import Origin, PlanEntry, Run, ScoresOnTest, ScoresOnValidation, Stage, write_run
from kdx.training.stopping import Stopped, StopRequest, listening

log = logging.getLogger(__name__)


def run_chain(settings: Settings, run_dir: Path, overrides: Sequence[str] = ()) -> float | None:
    """Deliver the configured stages; the best validation accuracy of the last one (None when only planning).

    Raises `KdxError` before the first training step for whatever in any stage cannot work.
    """
    index = StageIndex(Path(settings.output_dir))
    place = make_workplace(settings, load_dataset(settings))
    if place.device.type == "cpu" and not settings.activation_checkpointing:  # which asks for little memory
        keep_freed_memory()
    plan = make_plan(place, index)
    log.info("%s", "\n".join(describe_plan(plan)))
    log_description(place.dataset)
    loaded = check_plan(place, plan, run_dir)
    if settings.plan:
        return None
    make_folder(index.folder)
    with own_folder(run_dir), listening() as stop:
        refuse_other_run(run_dir, plan)
        stages = _Run(place, plan, index, run_dir, overrides, stop, loaded).deliver()
    log.info("\n%s\n", stage_table(stages))
    if settings.report:
        log.info("%s\n", write_run_report(run_dir))
    log.info("results: %s", relative(run_dir, Path.cwd()))
    return stages[plan[-1].role].validation["accuracy"]


class _Run:
    """The steps of a plan under way in one run folder."""

    def __init__(
        self,
        place: Workplace,
        plan: Sequence[Step],
        index: StageIndex,
        run_dir: Path,
        overrides: Sequence[str],
        stop: StopRequest,
        loaded: dict[str, Loaded],
    ) -> None:
        self.place, self.plan, self.index, self.run_dir = place, plan, index, run_dir
        self.stop, self.loaded = stop, loaded
        self.steps: dict[str, Step] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.record = Run(
            overrides=list(overrides),
            plan=[PlanEntry(s.role, s.action, s.fingerprint) for s in plan],
            surroundings=place.surroundings(),
            versions=versions(),
            git_commit=_git_commit(),
            class_names=list(place.dataset.class_names),
            data_notes=list(place.dataset.notes),
            seed=place.settings.seed,
            lineage=[Origin("data", place.dataset.name, place.dataset.digest)],
        )

    def deliver(self) -> dict[str, Stage]:
        """Carry all steps out; the record of each stage."""
        try:
            with worker_errors(self.place.settings.num_workers):
                for step in self.plan:
                    self.stop.raise_if_asked()
                    self.write_summary("running")
                    step, outcome = self.train_or_wait(step) if step.action == "train" else (step, self.take(step))
                    self.steps[step.role], self.outcomes[step.role] = step, outcome
                    self.describe(step, outcome)
                    self.forget_all_but(self.plan[len(self.steps) :])
                    full_cleanup()
        except Stopped as stopped:
            self.write_summary("stopped", str(stopped))
            raise
        except BaseException as error:
            self.write_summary("failed", str(error) if isinstance(error, KdxError) else repr(error))
            raise
        self.write_summary("finished")
        return self.record.stages

    def train_or_wait(self, step: Step) -> tuple[Step, Outcome]:
        """Train a stage, unless another run trains the same one: then wait for it and reuse the result."""
        folder, stop = self.run_dir / step.role, self.stop.raise_if_asked
        with self.index.claim(step.fingerprint, step.role, folder, stop) as (earlier, waited):
            reusable = waited or self.place.settings.reuse != "never"
            finished = self.index.find(step.fingerprint) if reusable else None
            reuse = None if finished is None else reuse_finished(self.place, step.stage, finished, self.index)
            if reuse is not None:
                return reuse, self.take(reuse)
            return step, self.train(step, earlier if waited or self.place.settings.resume else None)

    def train(self, step: Step, earlier: Path | None) -> Outcome:
        """Train a stage under its guide and file it in the index."""
        outcome = train_stage(
            self.place,
            step.stage,
            self.run_dir / step.role,
            own=step.fingerprint,
            guides=self.guides_of(step),
            earlier=earlier,
            stop=self.stop,
        )
        self.index.add(
            FinishedStage(
                fingerprint=step.fingerprint,
                role=step.role,
                network=step.stage.network,
                dataset=self.place.dataset.name,
                data_digest=self.place.dataset.digest,
                num_classes=self.place.dataset.num_classes,
                checkpoint=self.index.entry_path(outcome.checkpoint),
                sha256=outcome.sha256,
                epoch=outcome.epoch,
                validation=outcome.validation,
                test=outcome.test,
                seconds=outcome.seconds,
                finished=datetime.now(UTC).isoformat(),
                surroundings=self.place.surroundings(),
                code=network_code(self.place, step.stage),
            )
        )
        return outcome

    def take(self, step: Step) -> Outcome:
        """The outcome of a stage that exists: as filed, or tested now if it is a named checkpoint."""
        assert step.checkpoint is not None
        loaded = self.load(step, step.checkpoint)
        parameters, guide = count_parameters(loaded.network), loaded.guide_fingerprint
        if step.finished is not None:
            done = step.finished
            return Outcome(step.checkpoint, done.sha256, done.epoch, done.validation, done.test, parameters, 0.0, guide)
        test = scores_on_test(self.place, step.stage, loaded.network)
        return Outcome(step.checkpoint, loaded.sha256, loaded.epoch, loaded.validation, test, parameters, 0.0, guide)

    def load(self, step: Step, checkpoint: Path) -> Loaded:
        """A stage that is done, from its checkpoint unless it is still here."""
        if step.role not in self.loaded:
            self.loaded[step.role] = load_network(self.place, step.stage, checkpoint)
        return self.loaded[step.role]

    def forget_all_but(self, steps: Sequence[Step]) -> None:
        """Free the networks that these steps, which are to come, neither take nor are taught by."""
        needed = {step.role for step in steps} | {step.stage.guide for step in steps if step.action == "train"}
        for role in self.loaded.keys() - needed:
            del self.loaded[role]

    def guides_of(self, step: Step) -> dict[str, Guide]:
        """Who teaches a stage, by role."""
        guides = {}
        for role in [step.stage.guide] if step.stage.guide else []:
            outcome = self.outcomes[role]
            network = self.load(self.steps[role], outcome.checkpoint).network
            del self.loaded[role]  # it may be compiled for this stage: who teaches another one is loaded again
            guides[role] = Guide(network, self.steps[role].fingerprint, outcome.sha256)
        return guides

    def describe(self, step: Step, outcome: Outcome) -> None:
        """Record a stage that is done."""
        self.record.lineage.append(Origin(step.role, step.stage.network, outcome.sha256))
        self.record.stages[step.role] = Stage(
            network=step.stage.network,
            stem=network_spec(self.place, step.stage).stem,
            status={"train": "trained", "reuse": "reused", "load": "loaded"}[step.action],
            fingerprint=step.fingerprint,
            guide=step.stage.guide,
            guide_fingerprint=outcome.guide_fingerprint,
            checkpoint=relative(outcome.checkpoint, self.run_dir),
            sha256=outcome.sha256,
            epoch=outcome.epoch,
            parameters=outcome.parameters,
            validation=cast(ScoresOnValidation, outcome.validation),
            test=cast(ScoresOnTest, outcome.test),
            seconds=round(outcome.seconds, 3),
            checkpoint_mb=outcome.checkpoint.stat().st_size / 1e6,
            efficiency=self.costs_of(step, outcome),
        )

    def costs_of(self, step: Step, outcome: Outcome) -> dict[str, Any] | None:
        """What the stage's network costs to use, where a report is wanted."""
        if not self.place.settings.report:
            return None
        network = self.load(step, outcome.checkpoint).network
        spec, (height, width) = network_spec(self.place, step.stage), self.place.input_size
        try:
            return measure_network(network, (spec.in_channels, height, width), self.place.device)
        except (RuntimeError, MemoryError) as error:  # a batch of 64 may not fit; the result stands without it
            log.warning("the costs of the %s cannot be measured: %s", step.role, str(error).split("\n")[0])
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
