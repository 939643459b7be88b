"""One stage of a chain: how it is built, checked, trained and tested."""

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import kdx
from kdx.chain.context import Workplace, data_code, identity, network_code, network_spec
from kdx.chain.index import fingerprint
from kdx.checkpoint import check_identity, load_hashed, load_weights, versions
from kdx.config.schema import StageSettings
from kdx.config.settings import build
from kdx.data.batches import Batches
from kdx.data.dataset import Dataset
from kdx.epoch_log import EpochLogger
from kdx.errors import KdxError
from kdx.files import relative, write_atomic, write_json
from kdx.losses.hinton import Objective, loss_terms
from kdx.models.activation_checkpointing import recompute_blocks
from kdx.models.networks import NetworkSpec, build_network, capture_features, check_network, count_parameters
from kdx.reproducibility import derive_seed, setup_reproducibility
from kdx.trackers.trackers import check_tracker, open_tracker
from kdx.training.evaluation import evaluate
from kdx.training.progress import Best
from kdx.training.runtime import choose_compile
from kdx.training.stopping import StopRequest
from kdx.training.teachers import GuideLogits, LogitsCache
from kdx.training.trainer import Trainer, is_due

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
    guide_fingerprint: str | None


@dataclass(frozen=True)
class Guide:
    """A finished network that teaches; `sha256` is that of its checkpoint."""

    network: nn.Module
    fingerprint: str
    sha256: str


@dataclass(frozen=True)
class Loaded:
    """The network of a finished stage, on the device, and what its checkpoint says of it."""

    network: nn.Module
    sha256: str
    epoch: int
    validation: dict[str, float]
    guide_fingerprint: str | None


@dataclass
class Parts:
    """What a trainer needs of a stage; built twice, once to check it and once to train it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    objective: Objective | None


def build_parts(place: Workplace, stage: StageSettings) -> Parts:
    """Network, optimizer, scheduler and objective; the network's weights depend on (seed, role) only."""
    settings = place.settings
    setup_reproducibility(derive_seed(settings.seed, stage.role, "init"), settings.deterministic, settings.threads)
    try:
        network = build_network(network_spec(place, stage), settings.download)
    except KdxError as error:
        reason = str(error).removeprefix(f"model '{stage.network}': ")
        raise KdxError(f"model.{stage.role}={stage.network}: {reason}") from error
    if settings.activation_checkpointing:
        recompute_blocks(network)
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = build(stage.optimizer, "optimizer", trainable)
    scheduler = build(stage.scheduler, "scheduler", optimizer)
    return Parts(network, optimizer, scheduler, build(stage.kd, "kd"))


def check_stage(place: Workplace, stage: StageSettings) -> int:
    """Build everything of a stage and use it once on blank images; the number of its weights.

    So nothing can fail later for its settings: the network in both modes, the loss, the layer to be drawn.
    """
    check_tracker(place.settings.logger)
    parts, spec = build_parts(place, stage), network_spec(place, stage)
    size = place.input_size
    check_network(parts.network, spec, size, stage.batch_size)
    if parts.objective is not None:
        _check_objective(parts.objective, stage, place.dataset)
    wish = place.settings.visualize
    if wish.samples and wish.layer is not None:
        with capture_features(parts.network, wish.layer) as seen:
            check_network(parts.network, spec, size, stage.batch_size)
        if not seen or seen[0].ndim != 4:
            raise KdxError(f"visualize.layer={wish.layer}: gives no maps in the {stage.role}; choose an earlier layer")
    return count_parameters(parts.network)


def _check_objective(objective: Objective, stage: StageSettings, dataset: Dataset) -> None:
    logits = torch.zeros(2, dataset.num_classes, requires_grad=True)
    try:
        loss = loss_terms(objective, logits, torch.ones_like(logits), dataset.train.labels[:2])["loss"]
        loss.backward()
    except Exception as error:  # a user's own code may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise KdxError(f"kd: {stage.kd['_target_']} fails on (2, {dataset.num_classes}) logits ({reason})") from error


def load_network(place: Workplace, stage: StageSettings, checkpoint: Path) -> Loaded:
    """The stage's network with a checkpoint's weights; `KdxError` says what does not fit."""
    content, sha256 = load_hashed(checkpoint)
    check_identity(checkpoint, content.get("meta", {}), identity(place, stage))
    if not {"epoch", "validation"} <= content.keys():
        raise KdxError(f"{checkpoint}: says nothing of its epoch and its scores on the validation split")
    spec = network_spec(place, stage)
    blank = NetworkSpec(spec.name, spec.num_classes, spec.in_channels, stem=spec.stem)  # no ImageNet weights needed
    network = build_network(blank, place.settings.download)
    load_weights(network, content, checkpoint)
    guide = content["meta"].get("guide_fingerprint")
    return Loaded(place.precision.place(network), sha256, content["epoch"], content["validation"], guide)


def train_stage(
    place: Workplace,
    stage: StageSettings,
    folder: Path,
    *,
    own: str,
    guide: Guide | None,
    earlier: Path | None,
    stop: StopRequest,
) -> Outcome:
    """Train a stage, whose fingerprint is `own`, in `folder`; test its best checkpoint once.

    What a run that died left in `folder`, or else in `earlier`, is gone on from.
    """
    trainer = _make_trainer(place, stage, folder, own, guide, stop)
    _leave_clean_script(folder)
    _go_on(trainer, folder, earlier)
    told = {"role": stage.role, "fingerprint": own, "guide_fingerprint": trainer.identity["guide_fingerprint"]}
    write_json(folder / "logs" / f"{file_stem(stage)}_config.json", told | {"config": stage.config})
    try:
        best = _fit(trainer, stage)
    finally:
        trainer.logger.close()
    checkpoint = folder / "checkpoints" / best.file
    chosen = load_network(place, stage, checkpoint)
    test = scores_on_test(place, stage, chosen.network, trainer.guide) | {"epoch": best.epoch}
    write_json(folder / "test_metrics.json", test)
    _draw_feature_maps(place, stage, chosen.network, folder / "visualizations")
    seconds = sum(row["epoch_time_sec"] for row in trainer.history)
    return Outcome(
        checkpoint,
        chosen.sha256,
        best.epoch,
        chosen.validation,
        test,
        count_parameters(chosen.network),
        seconds,
        trainer.identity["guide_fingerprint"],
    )


def _make_trainer(
    place: Workplace, stage: StageSettings, folder: Path, own: str, guide: Guide | None, stop: StopRequest
) -> Trainer:
    """The stage's trainer with everything that it needs, its network and data on the device."""
    settings = place.settings
    parts = build_parts(place, stage)
    place.precision.place(parts.network)
    return Trainer(
        parts.network,
        name=stage.role,
        task=place.dataset.task,
        num_classes=place.dataset.num_classes,
        train=_batches(place, stage, "train"),
        val=_batches(place, stage, "val"),
        epochs=stage.epochs,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        precision=place.precision,
        logger=EpochLogger(
            folder / "logs" / f"{file_stem(stage)}_log.csv",
            stage.role,
            stage.epochs,
            log_interval=settings.log_interval,
            tracker=open_tracker(settings.logger, folder, Path(settings.output_dir), stage.config),
        ),
        folder=folder / "checkpoints",
        identity=identity(place, stage)
        | {"role": stage.role, "fingerprint": own, "guide_fingerprint": guide.fingerprint if guide else None}
        | {"versions": versions(), "surroundings": place.surroundings()},
        guide=guide.network if guide else None,
        objective=parts.objective,
        save_interval=settings.save_interval,
        log_interval=settings.log_interval,
        checkpoint_every_steps=settings.checkpoint_every_steps,
        accumulate=settings.accumulate,
        compile_mode=_compile_mode(place, stage),
        cache=LogitsCache(logits_folder(place, stage, guide.sha256)) if guide and stage.cache_logits else None,
        stop=stop,
        after_epoch=_drawing(place, stage, parts.network, folder),
    )


def _compile_mode(place: Workplace, stage: StageSettings) -> str | None:
    settings = place.settings
    if settings.compile == "auto" and settings.activation_checkpointing:  # the two do not go together
        return None
    steps = stage.epochs * math.ceil(len(place.dataset.train) / stage.batch_size)
    return choose_compile(settings.compile, place.device, steps)


def _leave_clean_script(folder: Path) -> None:
    path = folder / "clean.sh"
    write_atomic(path, (Path(kdx.__file__).parent / "clean.sh").read_bytes())
    path.chmod(path.stat().st_mode | 0o111)


def logits_folder(place: Workplace, stage: StageSettings, guide_sha256: str) -> Path:
    """Where the guide's logits are kept, under a name that stands for all that determines their bits."""
    known, settings, augment = identity(place, stage), place.settings, place.settings.augment
    card = torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else None
    facts: dict[str, Any] = {"guide": guide_sha256, "surroundings": place.surroundings()}
    facts |= {"versions": versions(), "card": card, "compiled": _compile_mode(place, stage)}
    taught_by = [other for other in settings.stages if other.role == stage.guide]
    facts["code"] = [data_code(place), *(network_code(place, guide) for guide in taught_by)]
    facts |= {"data_digest": known["data_digest"], "preprocessing": known["preprocessing"]}
    facts |= {"augment": list(augment), "batch_size": stage.batch_size, "accumulate": settings.accumulate}
    if augment:  # then they are those of this stage's views
        facts |= {"seed": settings.seed, "role": stage.role}
    return Path(settings.output_dir) / "index" / "logits" / fingerprint(facts)


def logits_to_come(place: Workplace, stage: StageSettings, guide_sha256: str | None) -> int:
    """Bytes that `kd.cache_logits` will still write: float32 logits of every training view, of validation and test.

    Of a guide that is to be trained (None) nothing is kept yet.
    """
    if not stage.cache_logits or stage.guide is None:
        return 0
    data, views = place.dataset, stage.epochs if place.settings.augment else 1
    everything = 4 * data.num_classes * (views * len(data.train) + len(data.val) + len(data.test))
    kept = () if guide_sha256 is None else logits_folder(place, stage, guide_sha256).glob("*.npy")
    return max(0, everything - sum(path.stat().st_size for path in kept))


def _fit(trainer: Trainer, stage: StageSettings) -> Best:
    """Train; running out of memory becomes an error that says what to do."""
    try:
        return trainer.fit()
    except (MemoryError, RuntimeError) as error:
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not memory:
            raise
        raise KdxError(
            f"{stage.role}: out of memory with batch_size={stage.batch_size}; "
            f"lower stage.{stage.role}.batch_size or set amp=bf16; what was saved is sound"
        ) from error


def _go_on(trainer: Trainer, folder: Path, earlier: Path | None) -> None:
    for source in (folder, earlier):
        if source is not None:
            if trainer.restore(source / "checkpoints"):
                step = f", step {trainer.partial.step}" if trainer.partial else ""
                done = len(trainer.history)
                log.info("%s: going on after epoch %d%s of %s", trainer.name, done, step, relative(source, Path.cwd()))
                return


def _draw_feature_maps(
    place: Workplace, stage: StageSettings, network: nn.Module, folder: Path, split: str = "test"
) -> None:
    """`feature_maps_*.png` in `folder` of the first images of a split, where the network has maps to draw."""
    wish = place.settings.visualize
    if not wish.samples:
        return
    from kdx.visualize.feature_maps import last_map_layer, save_feature_maps  # imports matplotlib

    batches = _batches(place, stage, split).unshuffled()
    layer = wish.layer or last_map_layer(network, next(batches.epoch(0)).images)
    if layer is not None:
        pairs = ((batch.images, batch.labels) for batch in batches.epoch(0))
        save_feature_maps(network, pairs, layer, folder, wish.samples)


def _drawing(place: Workplace, stage: StageSettings, network: nn.Module, folder: Path) -> Callable[[int], None] | None:
    """What draws feature maps of validation images every `visualize.every` epochs."""
    every = place.settings.visualize.every
    if not every:
        return None

    def draw(epoch: int) -> None:
        if is_due(epoch, every):
            _draw_feature_maps(place, stage, network, folder / "visualizations" / f"epoch_{epoch:04d}", "val")

    return draw


def scores_on_test(
    place: Workplace, stage: StageSettings, network: nn.Module, guide: GuideLogits | None = None
) -> dict[str, Any]:
    """Loss and scores on the test split, and the agreement with the guide."""
    test = _batches(place, stage, "test")
    guide_logits = None if guide is None else guide.of_split("test", test)
    return evaluate(network, test, place.precision, place.dataset.task, place.dataset.num_classes, guide_logits)


def file_stem(stage: StageSettings) -> str:
    """`<model>_<role>`, with what a file name should not hold replaced."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', stage.network)}_{stage.role}"


def _batches(place: Workplace, stage: StageSettings, split: str) -> Batches:
    settings = place.settings
    training = split == "train"
    return Batches(
        getattr(place.dataset, split),
        place.preprocessing,
        batch_size=stage.batch_size if training else 2 * stage.batch_size,
        device=place.device,
        seed=settings.seed,
        name=stage.role,
        augment=settings.augment if training else (),
        shuffle=training,
        num_workers=settings.num_workers,
    )
