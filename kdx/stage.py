"""One stage of a chain: what determines it, how it is built, trained and tested."""

import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdx.batches import IMAGENET_MEAN, IMAGENET_STD, Batches, Preprocessing, mean_and_std
from kdx.checkpoint import check_identity, load_checkpoint, load_weights, versions
from kdx.config import Settings, StageSettings, build
from kdx.data import Dataset
from kdx.epoch_log import EpochLogger
from kdx.errors import KdxError
from kdx.files import relative, write_json
from kdx.index import fingerprint
from kdx.losses import Objective, loss_terms
from kdx.models import NetworkSpec, build_network, capture_features, check_network, count_parameters, resolve_stem
from kdx.precision import Precision, choose_device, choose_precision
from kdx.reproducibility import derive_seed, setup_reproducibility
from kdx.stopping import StopRequest
from kdx.trainer import Best, Trainer, evaluate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workplace:
    """What all stages of a run share: settings, data, preprocessing, device and precision."""

    settings: Settings
    dataset: Dataset
    preprocessing: Preprocessing
    precision: Precision

    @property
    def device(self) -> torch.device:
        return self.precision.device

    def surroundings(self) -> dict[str, Any]:
        """What may change the last bits of a result without being part of its fingerprint."""
        return {
            "device": self.device.type,
            "precision": self.precision.name,
            "threads": self.settings.threads or torch.get_num_threads(),
            "deterministic": self.settings.deterministic,
        }


@dataclass(frozen=True)
class Outcome:
    """A finished stage as the summary and the table show it."""

    checkpoint: Path
    epoch: int
    validation: dict[str, float]
    test: dict[str, Any]
    parameters: int
    seconds: float


@dataclass
class Parts:
    """What a trainer needs of a stage; built twice, once to check it and once to train it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    objective: Objective | None


def load_dataset(settings: Settings) -> Dataset:
    """The configured data set."""
    dataset = build(settings.source, "dataset.source")
    if not isinstance(dataset, Dataset):
        raise KdxError(f"dataset.source: returned {type(dataset).__name__}, a kdx.data.Dataset is needed")
    return dataset


def make_workplace(settings: Settings, dataset: Dataset) -> Workplace:
    """Choose preprocessing, device and precision for a data set."""
    device = choose_device(settings.device)
    if dataset.mirrored and "flip" in settings.augment:
        raise KdxError(f"dataset.augment={list(settings.augment)}: a flip changes the class of {dataset.name}'s images")
    preprocessing = _choose_preprocessing(settings, dataset)
    return Workplace(settings, dataset, preprocessing, choose_precision(settings.amp, device))


def network_spec(place: Workplace, stage: StageSettings) -> NetworkSpec:
    """The stage's network for this data set."""
    height, width = place.dataset.image_shape[1:]
    size = place.preprocessing.resize or max(height, width)
    return NetworkSpec(
        name=stage.network,
        num_classes=place.dataset.num_classes,
        in_channels=place.preprocessing.channels,
        pretrained=stage.pretrained,
        freeze_backbone=place.settings.freeze_backbone,
        stem=resolve_stem(place.settings.stem, stage.network, stage.pretrained, size),
    )


def stage_fingerprint(place: Workplace, stage: StageSettings, guide_fingerprint: str | None) -> str:
    """Hash of exactly what determines the stage's weights."""
    facts: dict[str, Any] = {
        "role": stage.role,  # seeds are derived from it
        "data": {
            "digest": place.dataset.digest,
            "augment": sorted(set(place.settings.augment) - {"none"}),
            **_plain(place.preprocessing),
        },
        "network": asdict(network_spec(place, stage)),
        "optimizer": stage.optimizer,
        "scheduler": stage.scheduler,
        "epochs": stage.epochs,
        "batch_size": stage.batch_size,
        "amp": place.settings.amp,
        "seed": place.settings.seed,
    }
    if stage.distilled:
        facts |= {"kd": stage.kd, "guide": guide_fingerprint}
    return fingerprint(facts)


def identity(place: Workplace, stage: StageSettings) -> dict[str, Any]:
    """What a checkpoint must say of itself to stand for this stage's network on this data."""
    spec = network_spec(place, stage)
    return {
        "dataset": place.dataset.name,
        "data_digest": place.dataset.digest,
        "task": place.dataset.task,
        "num_classes": place.dataset.num_classes,
        "class_names": list(place.dataset.class_names),
        "network": spec.name,
        "stem": spec.stem,
        "in_channels": spec.in_channels,
        "preprocessing": _plain(place.preprocessing),
    }


def build_parts(place: Workplace, stage: StageSettings) -> Parts:
    """Network, optimizer, scheduler and objective; the network's weights depend on (seed, role) only."""
    settings = place.settings
    setup_reproducibility(derive_seed(settings.seed, stage.role, "init"), settings.deterministic, settings.threads)
    network = build_network(network_spec(place, stage), settings.download)
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = build(stage.optimizer, "optimizer", trainable)
    scheduler = build(stage.scheduler, "scheduler", optimizer)
    return Parts(network, optimizer, scheduler, build(stage.kd, "kd"))


def check_stage(place: Workplace, stage: StageSettings) -> int:
    """Build everything of a stage and use it once on blank images; the number of its weights.

    So nothing can fail later for its settings: the network in both modes, the loss, the layer to be drawn.
    """
    parts, spec = build_parts(place, stage), network_spec(place, stage)
    height, width = place.dataset.image_shape[1:]
    resize = place.preprocessing.resize
    size = (resize, resize) if resize else (height, width)
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


def load_network(place: Workplace, stage: StageSettings, checkpoint: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The stage's network with a checkpoint's weights, and the checkpoint; `KdxError` says what does not fit."""
    content = load_checkpoint(checkpoint)
    check_identity(checkpoint, content.get("meta", {}), identity(place, stage))
    spec = network_spec(place, stage)
    blank = NetworkSpec(spec.name, spec.num_classes, spec.in_channels, stem=spec.stem)  # no ImageNet weights needed
    network = build_network(blank, place.settings.download)
    load_weights(network, content, checkpoint)
    return network.to(place.device), content


def train_stage(
    place: Workplace,
    stage: StageSettings,
    folder: Path,
    *,
    own: str,
    guide: nn.Module | None,
    guide_own: str | None,
    earlier: Path | None,
    stop: StopRequest,
) -> Outcome:
    """Train a stage in `folder`, test its best checkpoint once. `own` and `guide_own` are fingerprints.

    What a run that died left in `folder`, or else in `earlier`, is gone on from.
    """
    settings = place.settings
    stem = file_stem(stage)
    parts = build_parts(place, stage)
    parts.network.to(place.device)
    trainer = Trainer(
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
            folder / "logs" / f"{stem}_log.csv", stage.role, stage.epochs, log_interval=settings.log_interval
        ),
        folder=folder / "checkpoints",
        identity=identity(place, stage)
        | {"role": stage.role, "fingerprint": own, "guide_fingerprint": guide_own, "versions": versions()}
        | {"surroundings": place.surroundings()},
        guide=guide,
        objective=parts.objective,
        save_interval=settings.save_interval,
        log_interval=settings.log_interval,
        checkpoint_every_steps=settings.checkpoint_every_steps,
        stop=stop,
    )
    _go_on(trainer, folder, earlier)
    told = {"role": stage.role, "fingerprint": own, "guide_fingerprint": guide_own, "config": stage.config}
    write_json(folder / "logs" / f"{stem}_config.json", told)
    best = _fit(trainer, stage)
    checkpoint = folder / "checkpoints" / best.file
    network, content = load_network(place, stage, checkpoint)
    test = scores_on_test(place, stage, network) | {"epoch": best.epoch}
    write_json(folder / "test_metrics.json", test)
    _draw_feature_maps(place, stage, network, folder)
    seconds = sum(row["epoch_time_sec"] for row in trainer.history)
    return Outcome(checkpoint, best.epoch, content["validation"], test, count_parameters(network), seconds)


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


def _draw_feature_maps(place: Workplace, stage: StageSettings, network: nn.Module, folder: Path) -> None:
    """`visualizations/feature_maps_*.png` of the first test images, where the network has maps to draw."""
    wish = place.settings.visualize
    if not wish.samples:
        return
    from kdx.visualize import last_map_layer, save_feature_maps  # imports matplotlib

    batches = _batches(place, stage, "test")
    layer = wish.layer or last_map_layer(network, next(batches.epoch(0))[0])
    if layer is not None:
        save_feature_maps(network, batches.epoch(0), layer, folder / "visualizations", wish.samples)


def scores_on_test(place: Workplace, stage: StageSettings, network: nn.Module) -> dict[str, Any]:
    """Loss and scores on the test split."""
    test = _batches(place, stage, "test")
    return evaluate(network, test, place.precision, place.dataset.task, place.dataset.num_classes)


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


def _choose_preprocessing(settings: Settings, dataset: Dataset) -> Preprocessing:
    """One preprocessing for the whole chain, since a guide and its pupil see the same batch.

    `auto` is ImageNet's as soon as one stage starts from ImageNet weights.
    """
    pretrained = any(stage.pretrained for stage in settings.stages)
    channels = 3 if pretrained else dataset.image_shape[0]
    how = settings.normalize
    if how == "imagenet" or (how == "auto" and pretrained):
        return Preprocessing(IMAGENET_MEAN, IMAGENET_STD, settings.resize)
    if isinstance(how, dict):
        mean, std = tuple(map(float, how["mean"])), tuple(map(float, how["std"]))
    else:
        mean, std = mean_and_std(dataset.train.images)
    if len(mean) == 1:
        mean, std = mean * channels, std * channels
    if len(mean) != channels:
        raise KdxError(f"dataset.normalize={how}: {len(mean)} values for images of {channels} channels")
    return Preprocessing(mean, std, settings.resize)


def _plain(preprocessing: Preprocessing) -> dict[str, Any]:
    return {"mean": list(preprocessing.mean), "std": list(preprocessing.std), "resize": preprocessing.resize}
