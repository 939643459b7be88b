"""What all stages of a run share."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kdx.augmentations import Flip, plain_augment
from kdx.chain.code import Sources
from kdx.config.build import build
from kdx.config.schema import Settings, StageSettings
from kdx.data.batches import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, mean_and_std
from kdx.data.dataset import Dataset
from kdx.data.unlabelled import add_unlabelled
from kdx.errors import KdxError
from kdx.models.batch_norm import momentum_for
from kdx.models.networks import NetworkSpec
from kdx.models.stem import resolve_stem
from kdx.tasks import MULTI_LABEL
from kdx.training.distributed import Ranks
from kdx.training.runtime import Precision, choose_precision, device_of_rank


@dataclass
class AsBuilt:
    """Networks that bring their weights, built for a plan: hashes of these, and the networks until they are used."""

    hashes: dict[str, str] = field(default_factory=dict)
    networks: dict[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share: settings, data, preprocessing, device and precision."""

    settings: Settings
    dataset: Dataset
    preprocessing: Preprocessing
    precision: Precision
    sources: Sources = field(default_factory=Sources)
    ranks: Ranks = field(default_factory=Ranks)
    as_built: AsBuilt = field(default_factory=AsBuilt)

    @property
    def device(self) -> torch.device:
        return self.precision.device

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images that networks see."""
        return self.preprocessing.seen_size(self.dataset.image_shape[1:])

    def surroundings(self) -> dict[str, Any]:
        """What may change the last bits of a result without being part of its fingerprint."""
        several = {"devices": self.settings.world} if self.settings.world > 1 else {}
        return several | {
            "device": self.device.type,
            "precision": self.precision.name,
            "channels_last": self.precision.channels_last,
            "compile": self.settings.compile,
            "threads": self.settings.threads or torch.get_num_threads(),
            "deterministic": self.settings.deterministic,
        }


def load_dataset(settings: Settings) -> Dataset:
    """The configured data set, with the pictures without labels where there are any."""
    sources = Sources()
    sources.of_node(settings.source)
    dataset = build(settings.source, "dataset.source")
    sources.confirm()
    if not isinstance(dataset, Dataset):
        raise KdxError(f"dataset.source: returned {type(dataset).__name__}, a kdx.data.Dataset is needed")
    folder = settings.unlabelled
    if folder is None:
        return dataset
    return add_unlabelled(
        dataset,
        folder.path,
        in_memory_gb=folder.in_memory_gb,
        num_workers=settings.num_workers,
        cache=folder.cache,
        cache_dir=folder.cache_dir,
    )


def make_run_context(settings: Settings, dataset: Dataset, ranks: Ranks | None = None) -> RunContext:
    """Choose preprocessing, device and precision for a data set; `ranks` are given to what trains with others."""
    place = settings.torchrun
    if place is not None:  # on each machine the first cards, one a process
        device = device_of_rank(settings.device, place.local_size, place.local_rank, alone=False)
    else:
        device = device_of_rank(settings.device, settings.devices, 0 if ranks is None else ranks.rank)
    if dataset.mirrored and any(isinstance(one, Flip) for one in settings.augment):
        raise KdxError(
            f"dataset.augment={plain_augment(settings.augment)}: a flip changes the class of {dataset.name}'s images"
        )
    if settings.balance and dataset.task == MULTI_LABEL:
        raise KdxError(f"dataset.balance=true: an image of {dataset.name} has labels, not one class; choose false")
    preprocessing = _choose_preprocessing(settings, dataset)
    precision = choose_precision(settings.amp, device, settings.channels_last, settings.compile)
    return RunContext(settings, dataset, preprocessing, precision, ranks=ranks or Ranks())


def network_spec(context: RunContext, stage: StageSettings) -> NetworkSpec:
    """The stage's network for this data set."""
    return NetworkSpec(
        name=stage.network,
        num_classes=context.dataset.num_classes,
        in_channels=context.preprocessing.channels,
        pretrained=stage.pretrained,
        freeze_backbone=stage.freeze_backbone,
        stem=stage.stem
        or resolve_stem(context.settings.stem, stage.network, stage.pretrained, max(context.input_size)),
        norm_momentum=momentum_for(stage.network, stage.pretrained),
        image_size=context.input_size,
        head=stage.head,
    )


def metadata(context: RunContext, stage: StageSettings) -> dict[str, Any]:
    """What a checkpoint must say of itself to stand for this stage's network on this data."""
    spec = network_spec(context, stage)
    return {
        "dataset": context.dataset.name,
        "data_digest": context.dataset.digest,
        "task": context.dataset.task,
        "num_classes": context.dataset.num_classes,
        "class_names": list(context.dataset.class_names),
        "network": spec.name,
        "stem": spec.stem,
        "in_channels": spec.in_channels,
        "image_shape": list(context.dataset.image_shape),
        "preprocessing": context.preprocessing.plain | _white(context.dataset),
        **({} if stage.head else {"head": False}),
    }


def _choose_preprocessing(settings: Settings, dataset: Dataset) -> Preprocessing:
    """One preprocessing for the whole chain, since a teacher and its student see the same batch.

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


def _white(dataset: Dataset) -> dict[str, Any]:
    """What predict must know to read pictures as they were read for the training."""
    return {} if dataset.white is None else {"white": dataset.white}
