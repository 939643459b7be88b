"""The batches of a stage: of a split, by its recipe."""

import torch
from torch import Tensor

from kdx.chain.context import RunContext
from kdx.config.schema import StageSettings
from kdx.data.batches import Batches, batches_an_epoch, images_an_epoch
from kdx.data.dataset import Dataset, Unlabelled
from kdx.data.labelled import labelled_images
from kdx.data.unlabelled import with_unlabelled


def stage_batches(context: RunContext, stage: StageSettings, split: str, dataset: Dataset | None = None) -> Batches:
    """The batches of a split; of another data set where one is given, all of whose labels are known.

    Where a part of the labels is used, a stage that has teachers sees the other images without them; pictures that
    have none come behind the training images.
    """
    settings, training = context.settings, split == "train"
    images = getattr(dataset or context.dataset, split)
    known, pictures = None, None
    if training and dataset is None:
        known, pictures = known_labels(context, stage), unlabelled_of(context, stage)
    if pictures is not None:
        known = torch.ones(len(images), dtype=torch.bool) if known is None else known
        known = torch.cat([known, known.new_zeros(len(pictures))])
        images = with_unlabelled(images, pictures)
    return Batches(
        images,
        context.preprocessing,
        batch_size=stage.recipe.batch_size if training else 2 * stage.recipe.batch_size,
        device=context.device,
        seed=settings.seed,
        name=stage.role,
        augment=settings.augment if training else (),
        shuffle=training,
        balance=settings.balance,
        num_classes=context.dataset.num_classes,
        num_workers=settings.num_workers,
        known=known,
        known_only=not stage.distilled,
    )


def known_labels(context: RunContext, stage: StageSettings) -> Tensor | None:
    """True for the data set's training images (N,) whose labels the stage may use; None for all."""
    data = context.dataset
    return labelled_images(data.train.labels, stage.recipe.labelled, data.task, context.settings.seed)


def unlabelled_of(context: RunContext, stage: StageSettings) -> Unlabelled | None:
    """The pictures without labels, for a stage that somebody teaches."""
    return context.dataset.unlabelled if stage.distilled else None


def train_size(context: RunContext, stage: StageSettings) -> int:
    """How many images the stage's training split has, those without labels included; `Batch.indices` are below it."""
    return len(context.dataset.train) + len(unlabelled_of(context, stage) or ())


def updates_per_epoch(context: RunContext, stage: StageSettings) -> int:
    data, known = context.dataset.train, None if stage.distilled else known_labels(context, stage)
    labels = data.labels if known is None else data.labels[known]
    images = images_an_epoch(labels, context.settings.balance) + train_size(context, stage) - len(data)
    return batches_an_epoch(images, stage.recipe.batch_size, shuffle=True)
