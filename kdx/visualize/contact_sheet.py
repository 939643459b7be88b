"""What augmentation makes of images: a sheet with an image a row, as it is and as several epochs see it."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from kdx.augmentations import Augmentation
from kdx.data.batches import Batches, Preprocessing, resized
from kdx.data.dataset import Dataset, Split
from kdx.text import harmless
from kdx.visualize.feature_maps import save_figure

GAP = 2  # pixels between two images


def views_of(
    split: Split, preprocessing: Preprocessing, augment: Sequence[Augmentation], classes: int, views: int, seed: int
) -> Tensor:
    """Pixels (N, 1 + views, C, H, W) of 0-255: each image as networks see it, then in so many epochs of training.

    The images are one batch: those that mix have each the one before it as their partner.
    """
    batches = Batches(
        split,
        preprocessing,
        batch_size=len(split),
        device=torch.device("cpu"),
        seed=seed,
        name="sheet",
        augment=augment,
        num_classes=classes,
    )
    assert isinstance(split.images, Tensor)
    offset, scale = (255 * torch.tensor(n).view(1, -1, 1, 1) for n in (preprocessing.mean, preprocessing.std))
    seen = [resized(split.images.float(), preprocessing.resize)]
    seen += [next(batches.epoch(epoch)).images * scale + offset for epoch in range(1, 1 + views)]
    return torch.stack([one.expand(-1, len(preprocessing.mean), -1, -1) for one in seen], dim=1).clamp(0, 255)


def draw_sheet(views: Tensor, data: Dataset, labels: Tensor, title: str, path: Path) -> None:
    """Views (N, V, C, H, W) of 0-255 as a sheet with the classes beside it, written to `path`."""
    count, columns, _, height, width = views.shape
    sheet = torch.full((3, count * (height + GAP), columns * (width + GAP)), 255.0)
    for row in range(count):
        for column in range(columns):
            top, left = row * (height + GAP), column * (width + GAP)
            sheet[:, top : top + height, left : left + width] = views[row, column]
    side = max(0.6, width / 100)  # inches an image, at 100 pixels an inch
    figure = Figure(figsize=(columns * side + 1.6, count * side * height / width + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(sheet.permute(1, 2, 0).to(torch.uint8).numpy(), interpolation="nearest")
    axes.set_title("\n".join(textwrap.wrap(harmless(title), 90)), fontsize=9, parse_math=False)
    axes.set_xticks(
        [(column + 0.5) * (width + GAP) for column in range(columns)],
        ["as it is", *(f"epoch {number}" for number in range(1, columns))],
        fontsize=7,
    )
    axes.set_yticks(
        [(row + 0.5) * (height + GAP) for row in range(count)],
        [harmless(label_names(label, data)) for label in labels],
        fontsize=7,
        parse_math=False,
    )
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    save_figure(figure, path)


def label_names(label: Tensor, data: Dataset) -> str:
    """The names of an image's class, or of the labels that it has."""
    numbers = [int(label)] if label.ndim == 0 else torch.nonzero(label).flatten().tolist()
    return ", ".join(data.class_names[number] for number in numbers) or "no label"
