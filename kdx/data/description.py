"""What a data set holds, in words: a line a split, and what a user should know before trusting a result."""

import logging
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from kdx.data.dataset import Dataset, Split
from kdx.data.folders import beside_note
from kdx.tasks import MULTI_LABEL
from kdx.text import first_names, harmless

log = logging.getLogger(__name__)

EACH = 10  # up to so many classes are told one by one
NAMED = 5  # classes that a warning names
SAMPLE = 256  # images of a split whose grey levels are looked at
DARK = 16  # 12 bits taken for 16 reach it: 4095 / 65535 * 255


def log_description(data: Dataset) -> None:
    """Log what each split holds; what is odd about it, as warnings."""
    for line in describe(data):
        log.info("%s", harmless(line))
    for line in (*notes_of(data), *oddities(data)):
        log.warning("warning: %s", harmless(line))


def describe(data: Dataset) -> list[str]:
    """A line a split: how many images, of which size, how many of each class; and one of those without labels."""
    channels, height, width = data.image_shape
    size = f"{height}x{width} {'grey' if channels == 1 else 'colour'}"
    lines = [
        f"{name}: {len(split)} images of {size}: {counts_text(counts_of(split, data).tolist(), data.class_names)}"
        for name, split in data.splits.items()
    ]
    if data.unlabelled is not None:
        whence = f"from {data.unlabelled.folder}, for distilled stages only"
        lines.append(f"unlabelled: {len(data.unlabelled)} images of {size} without labels {whence}")
    return lines


def notes_of(data: Dataset) -> Iterator[str]:
    """What a user should know of where the images come from."""
    yield from data.notes
    yield from beside_note(data.beside, None if data.unlabelled is None else data.unlabelled.folder)


def oddities(data: Dataset) -> Iterator[str]:
    """Classes without an image, and splits whose pixels are all alike or nearly black."""
    what = "label" if data.task == MULTI_LABEL else "class"
    for name, split in data.splits.items():
        counts = counts_of(split, data)
        absent = [data.class_names[i] for i in torch.nonzero(counts == 0).flatten().tolist()]
        if absent:
            effect = "is never learnt" if name == "train" else "says nothing of it in its scores"
            yield f"{name} holds no image of {what} {first_names(absent, NAMED)}: it {effect}"
        if name == "train" and len(counts) > 1 and int(counts.max()) == len(split) and what == "class":
            yield f"{name}: all images are of one class"
        low, high = grey_range(split)
        if low == high:
            yield f"{name}: every pixel of every image has the value {low}: there is nothing to learn from it"
        elif high <= DARK:
            yield f"{name}: no pixel is brighter than {high} of 255 (12 bits in 16-bit files? set dataset.white=4095)"


def counts_of(split: Split, data: Dataset) -> Tensor:
    """Images of each class, int64 (classes,); of a multi-label set, those that have the label."""
    if data.task == MULTI_LABEL:
        return split.labels.long().sum(dim=0)
    return torch.bincount(split.labels, minlength=data.num_classes)


def grey_range(split: Split) -> tuple[int, int]:
    """The smallest and largest pixel of evenly spaced images; of all where those are alike."""
    low, high = _range(split, range(0, len(split), max(1, len(split) // SAMPLE)))
    return _range(split, range(len(split))) if low == high else (low, high)


def _range(split: Split, indices: Iterable[int]) -> tuple[int, int]:
    images = (split.images[index] for index in indices)
    ends = [(int(image.min()), int(image.max())) for image in images]
    return min(low for low, _ in ends), max(high for _, high in ends)


def counts_text(counts: Sequence[int], class_names: Sequence[str]) -> str:
    """Images of each class, or of many classes the fewest and the most."""
    if len(counts) <= EACH:
        return ", ".join(f"{name} {count}" for name, count in zip(class_names, counts, strict=True))
    least, most = min(counts), max(counts)
    text = f"{len(counts)} classes of {least} to {most}"
    return text if least == most or not least else f"{text} (1 : {imbalance(counts)})"


def imbalance(counts: Sequence[int]) -> str:
    """How many images the most frequent class that there is has for each of the rarest."""
    there = [count for count in counts if count]
    return f"{max(there) / min(there):.1f}" if there else "-"
