"""The batches of a stage: of a split, by its recipe."""

from torch import Tensor

from kdx.chain.context import RunContext
from kdx.config.schema import StageSettings
from kdx.data.batches import Batches, batches_an_epoch, images_an_epoch
from kdx.data.dataset import Dataset
from kdx.data.labelled import labelled_images


def stage_batches(context: RunContext, stage: StageSettings, split: str, dataset: Dataset | None = None) -> Batches:
    """The batches of a split; of another data set where one is given, all of whose labels are known.

    Where a part of the labels is used, a stage that has teachers sees the other images without them.
    """
    settings, training = context.settings, split == "train"
    known = known_labels(context, stage) if training and dataset is None else None
    return Batches(
        getattr(dataset or context.dataset, split),
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
    """True for the training images (N,) whose labels the stage may use; None for all."""
    data = context.dataset
    return labelled_images(data.train.labels, stage.recipe.labelled, data.task, context.settings.seed)


def updates_per_epoch(context: RunContext, stage: StageSettings) -> int:
    labels, known = context.dataset.train.labels, None if stage.distilled else known_labels(context, stage)
    images = images_an_epoch(labels if known is None else labels[known], context.settings.balance)
    return batches_an_epoch(images, stage.recipe.batch_size, shuffle=True)
