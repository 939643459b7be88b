"""One stage of a chain: how it is trained and tested."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kdx
from kdx.chain.batches import stage_batches
from kdx.chain.context import RunContext, metadata
from kdx.chain.drawing import draw_feature_maps, drawing_while_trained
from kdx.chain.fingerprints import as_recorded
from kdx.chain.loaded import LoadedStage, load_network
from kdx.chain.logits import compile_mode, keeps_logits, logits_folder
from kdx.chain.parts import Parts, build_parts
from kdx.chain.start import Start
from kdx.checkpoint import versions
from kdx.config.schema import StageSettings
from kdx.data.dataset import Dataset
from kdx.epoch_log import EpochLogger
from kdx.errors import KdxError
from kdx.files import from_here, write_atomic, write_json
from kdx.models.features import Layers
from kdx.models.networks import count_parameters
from kdx.trackers.trackers import open_tracker
from kdx.training.evaluation import evaluate
from kdx.training.keeper import Bystander, Keeper
from kdx.training.runtime import match_layout
from kdx.training.stopping import StopRequest
from kdx.training.teachers import LogitsCache, Teacher
from kdx.training.trainer import Trainer
from kdx.users_code import text_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A finished stage as the summary and the table show it."""

    checkpoint: Path
    sha256: str
    epoch: int
    validation: dict[str, float]
    test: dict[str, Any]
    parameters: int
    seconds: float
    guide_fingerprint: str | list[str] | None

    @classmethod
    def of(cls, loaded: LoadedStage, checkpoint: Path, test: dict[str, Any], seconds: float = 0.0) -> "Outcome":
        """A stage as its checkpoint tells it, with its scores on the test split."""
        told = (loaded.sha256, loaded.epoch, loaded.validation, test, count_parameters(loaded.network), seconds)
        return cls(checkpoint, *told, loaded.guide_fingerprint)


@dataclass(frozen=True)
class FinishedTeacher:
    """A finished network that teaches; `sha256` is that of its checkpoint."""

    network: nn.Module
    fingerprint: str
    sha256: str


def train_stage(
    context: RunContext,
    stage: StageSettings,
    folder: Path,
    *,
    own: str,
    teachers: Mapping[str, FinishedTeacher],
    start: Start | None,
    earlier: Path | None,
    stop: StopRequest,
) -> Outcome:
    """Train a stage, whose fingerprint is `own`, in `folder`; test its best checkpoint once.

    What a run that died left in `folder`, or else in `earlier`, is resumed.
    """
    trainer = _trainer_under(teachers, context, stage, start)
    lineage = as_recorded([teacher.fingerprint for teacher in teachers.values()])
    meta: dict[str, Any] = {"role": stage.role, "fingerprint": own, "guide_fingerprint": lineage}
    meta |= {} if trainer.learner.objective.teaches_classes else {"classifies": False}
    keeper = _keeper(context, stage, folder, trainer, meta, stop)
    _leave_clean_script(folder)
    _resume(trainer, keeper, earlier)
    write_json(folder / "logs" / f"{file_stem(stage)}_config.json", meta | {"config": stage.config})
    with closing(keeper.logger), _memory_errors(stage):
        best = trainer.fit(keeper, drawing_while_trained(context, stage, trainer.learner.network, folder))
    checkpoint = folder / "checkpoints" / best.file
    chosen = load_network(context, stage, checkpoint)
    images = stage_batches(context, stage, "test")
    classifying = {role: teacher for role, teacher in trainer.teachers.items() if role not in stage.headless}
    said = {role: teacher.of_split("test", images) for role, teacher in classifying.items()}
    scores = scores_on_test(context, stage, chosen.network, said) if chosen.classifies else {}
    test = scores | {"epoch": best.epoch}
    write_json(folder / "test_metrics.json", test)
    draw_feature_maps(context, stage, chosen.network, folder / "visualizations")
    seconds = sum(row["epoch_time_sec"] for row in trainer.progress.history)
    return Outcome.of(chosen, checkpoint, test, seconds)


def train_beside(context: RunContext, stage: StageSettings, teachers: Mapping[str, FinishedTeacher]) -> None:
    """Train a stage as another rank than 0, in whose state it begins; nothing is left of it."""
    trainer = _trainer_under(teachers, context, stage)
    with _memory_errors(stage):
        trainer.fit(Bystander())


def _trainer_under(
    teachers: Mapping[str, FinishedTeacher], context: RunContext, stage: StageSettings, start: Start | None = None
) -> Trainer:
    """The stage's trainer under its teachers, whose logits are kept where that is wanted."""
    parts = build_parts(context, stage, {role: known.network for role, known in teachers.items()}, start)
    layers = parts.teacher_layers
    asked = {role: _teacher(context, stage, role, known, layers[role]) for role, known in teachers.items()}
    return make_trainer(context, stage, parts, asked)


def _teacher(context: RunContext, stage: StageSettings, role: str, known: FinishedTeacher, layers: Layers) -> Teacher:
    cache = None
    if keeps_logits(context, stage, bool(layers)):
        cache = LogitsCache(logits_folder(context, stage, role, known.sha256), context.dataset.num_classes)
    return Teacher(known.network, context.precision, layers, cache, context.ranks)


def make_trainer(
    context: RunContext,
    stage: StageSettings,
    parts: Parts,
    teachers: Mapping[str, Teacher],
    dataset: Dataset | None = None,
) -> Trainer:
    """The stage's trainer, on the images of another data set where one is given."""
    return Trainer(
        parts.learner,
        teachers,
        stage_batches(context, stage, "train", dataset),
        stage_batches(context, stage, "val", dataset),
        parts.optimizer,
        parts.schedule,
        stage.recipe,
        compile_mode=compile_mode(context, stage),
        ranks=context.ranks,
        name=stage.role,
        task=context.dataset.task,
        num_classes=context.dataset.num_classes,
    )


def _keeper(
    context: RunContext, stage: StageSettings, folder: Path, trainer: Trainer, meta: dict[str, Any], stop: StopRequest
) -> Keeper:
    settings = context.settings
    logger = EpochLogger(
        folder / "logs" / f"{file_stem(stage)}_log.csv",
        stage.role,
        stage.recipe.epochs,
        log_interval=settings.log_interval,
        tracker=open_tracker(settings.logger, folder, Path(settings.output_dir), stage.config),
    )
    return Keeper(
        folder / "checkpoints",
        metadata(context, stage) | meta | {"versions": versions(), "surroundings": context.surroundings()},
        trainer.state,
        trainer.progress,
        logger,
        save_interval=settings.save_interval,
        checkpoint_every_steps=settings.checkpoint_every_steps,
        stop=stop,
    )


def _leave_clean_script(folder: Path) -> None:
    path = folder / "clean.sh"
    write_atomic(path, (Path(kdx.__file__).parent / "clean.sh").read_bytes())
    path.chmod(path.stat().st_mode | 0o111)


@contextmanager
def _memory_errors(stage: StageSettings) -> Iterator[None]:
    """Running out of memory becomes an error that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        raise_if_out_of_memory(error, stage)
        raise


def raise_if_out_of_memory(error: BaseException, stage: StageSettings) -> None:
    """`KdxError` that says what to lower, where an error means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text_of(error):
        raise KdxError(
            f"{stage.role}: out of memory with batch_size={stage.recipe.batch_size}; "
            f"lower stage.{stage.role}.batch_size or set amp=bf16; what was saved is sound"
        ) from error


def _resume(trainer: Trainer, keeper: Keeper, earlier: Path | None) -> None:
    for source in (keeper.folder, None if earlier is None else earlier / "checkpoints"):
        if source is not None and keeper.resume(source):
            match_layout(trainer.optimizer)
            progress = trainer.progress
            step = f", step {progress.under_way.step}" if progress.under_way.step else ""
            where = from_here(source.parent)
            log.info("%s: resumed after epoch %d%s of %s", trainer.name, progress.epochs, step, where)
            return


def scores_on_test(
    context: RunContext, stage: StageSettings, network: nn.Module, teacher_logits: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Loss and scores on the test split, and the agreement with the teachers' logits (N, C), by role."""
    test, dataset = stage_batches(context, stage, "test"), context.dataset
    return evaluate(network, test, context.precision, dataset.task, dataset.num_classes, teacher_logits)


def file_stem(stage: StageSettings) -> str:
    """`<model>_<role>`, with what a file name should not hold replaced."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', stage.network)}_{stage.role}"
