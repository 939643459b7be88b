"""What summary.json tells of a run, kept up to date while its stages are carried out."""

import logging
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

import kdx
from kdx.chain.context import RunContext, network_spec
from kdx.chain.fingerprints import as_recorded, configuration_fingerprint, start_hash
from kdx.chain.plan import PlannedStage
from kdx.chain.stage import Outcome
from kdx.checkpoint import versions
from kdx.data.description import describe, notes_of
from kdx.deploy.efficiency import measure_network
from kdx.errors import KdxError
from kdx.files import hash_file, relative
from kdx.metrics.selection import Selection
from kdx.models.networks import pretrained_file
from kdx.results import Origin, PlanEntry, Run, ScoresOnTest, ScoresOnValidation, Stage, write_run
from kdx.training.stopping import Stopped
from kdx.users_code import reason_of

log = logging.getLogger(__name__)

STATUS = {"train": "trained", "reuse": "reused", "load": "loaded", "import": "imported"}


class RunRecord:
    """The record of a run under way; `run` is what summary.json will hold."""

    def __init__(
        self, context: RunContext, plan: Sequence[PlannedStage], run_dir: Path, overrides: Sequence[str]
    ) -> None:
        self.context, self.run_dir = context, run_dir
        self.run = Run(
            overrides=list(overrides),
            plan=[self._entry(planned) for planned in plan],
            surroundings=context.surroundings(),
            versions=versions(),
            git_commit=_git_commit(),
            class_names=list(context.dataset.class_names),
            data_notes=list(notes_of(context.dataset)),
            seed=context.settings.seed,
            lineage=[Origin("data", context.dataset.name, context.dataset.digest)],
        )
        pictures = context.dataset.unlabelled
        if pictures is not None:
            self.run.data_notes.append(describe(context.dataset)[-1])
            self.run.lineage.append(Origin("unlabelled", Path(pictures.folder).name, pictures.digest))
        for planned in plan:
            if planned.action == "train" and planned.stage.pretrained:  # found: the plan was tried with it
                weights = pretrained_file(planned.stage.network, download=False)
                self.run.lineage.append(Origin("pretrained", planned.stage.network, hash_file(weights)))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write summary.json at the end of a block, whatever ends it."""
        try:
            yield
        except Stopped as stopped:
            self.write("stopped", str(stopped))
            raise
        except BaseException as error:
            self.write("failed", str(error) if isinstance(error, KdxError) else reason_of(error))
            raise
        self.write("finished")

    def add(self, planned: PlannedStage, outcome: Outcome, load: Callable[[], nn.Module]) -> None:
        """Record a stage that is done; `load` gives its network where its costs are to be measured."""
        if planned.source is not None:
            self.run.lineage.append(Origin("file", planned.source.name, hash_file(planned.source)))
        if planned.stage.start is not None and planned.action == "train":
            self.run.lineage.append(Origin("start", Path(planned.stage.start).name, start_hash(planned.stage) or ""))
        self.run.lineage.append(Origin(planned.role, planned.stage.network, outcome.sha256))
        if not planned.stage.head:  # no scores: it is told by the plan and here
            return
        self.run.stages[planned.role] = Stage(
            network=planned.stage.network,
            stem=network_spec(self.context, planned.stage).stem,
            status=STATUS[planned.action],
            fingerprint=planned.fingerprint,
            configuration=configuration_fingerprint(self.context, planned.stage),
            selected_by=self._selected_by(planned),
            guide=as_recorded(planned.stage.teachers) if outcome.guide_fingerprint else None,
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
            efficiency=self._costs(planned, load) if self.context.settings.report else None,
        )

    def _entry(self, planned: PlannedStage) -> PlanEntry:
        """What the plan tells of a stage."""
        epochs = planned.stage.recipe.epochs if planned.action == "train" else None
        return PlanEntry(planned.role, planned.action, planned.fingerprint, epochs, self._selected_by(planned))

    def _selected_by(self, planned: PlannedStage) -> str:
        """What on validation chooses a stage's epoch."""
        return Selection.resolve(planned.stage.recipe.select, self.context.dataset.task).name

    def _costs(self, planned: PlannedStage, load: Callable[[], nn.Module]) -> dict[str, Any] | None:
        """What the stage's network costs to use."""
        network = load()
        spec, (height, width) = network_spec(self.context, planned.stage), self.context.input_size
        try:
            return measure_network(network, (spec.in_channels, height, width), self.context.device)
        except (RuntimeError, MemoryError) as error:  # a batch of 64 may not fit; the result stands without it
            log.warning("the costs of the %s cannot be measured: %s", planned.role, str(error).split("\n")[0])
            return None

    def write(self, status: str, error: str | None = None) -> None:
        """Write summary.json; each role that is done is a key of its own."""
        write_run(self.run_dir, replace(self.run, status=status, error=error))


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
