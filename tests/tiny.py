"""Networks and data small enough for tests, reachable by the names that a config uses."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdx.data.dataset import Dataset, from_arrays

NETWORK = "tests.tiny:network"
WIDE = "tests.tiny:wide"


class TinyNet(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.norm(self.stem(images)))
        return self.head(self.drop(features.mean(dim=(2, 3))))


class OwnNorm(nn.BatchNorm2d):
    """A batch-norm that computes something of its own."""


def own_norm(num_classes: int, in_channels: int) -> nn.Module:
    made = TinyNet(num_classes, in_channels, width=4)
    made.norm = OwnNorm(4)
    return made


def network(num_classes: int, in_channels: int) -> nn.Module:
    return TinyNet(num_classes, in_channels, width=4)


def wide(num_classes: int, in_channels: int) -> nn.Module:
    return TinyNet(num_classes, in_channels, width=8)


def arrays(
    task: str = "multi-class", classes: int = 3, count: int = 30, size: int = 8, channels: int = 1, seed: int = 0
):
    """Images whose brightness and lower half tell the class."""
    draw = np.random.default_rng(seed)
    splits = {}
    for split in ("train", "val", "test"):
        labels = np.arange(count) % classes
        images = draw.integers(0, 60, (count, size, size, channels)) + (labels * 60)[:, None, None, None]
        images[:, size // 2 :] += (labels == 1)[:, None, None, None] * 60
        if task == "multi-label":
            labels = np.stack([(labels >= label) & (draw.random(count) < 0.9) for label in range(classes)], axis=1)
        splits[split] = (images.clip(0, 255).astype(np.uint8), labels.astype(np.int64))
    return splits


def dataset(
    task: str = "multi-class", classes: int = 3, count: int = 30, size: int = 8, channels: int = 1, seed: int = 0
) -> Dataset:
    names = [f"class{number}" for number in range(classes)]
    return from_arrays("tiny", arrays(task, classes, count, size, channels, seed), task=task, class_names=names)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("cannot be pickled")
        self.lock = threading.Lock()


def hostile(how: str) -> nn.Module:
    """What a job can do to its sweep."""
    if how == "raises":
        raise RuntimeError("the network is broken")
    if how == "unpicklable":
        raise Unpicklable
    if how == "exits":
        sys.exit(0)
    if how == "exits_hard":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def raises(num_classes: int, in_channels: int) -> nn.Module:
    return hostile("raises")


def unpicklable(num_classes: int, in_channels: int) -> nn.Module:
    return hostile("unpicklable")


def exits(num_classes: int, in_channels: int) -> nn.Module:
    return hostile("exits")


def exits_hard(num_classes: int, in_channels: int) -> nn.Module:
    return hostile("exits_hard")


def killed(num_classes: int, in_channels: int) -> nn.Module:
    return hostile("killed")


class SlowNet(TinyNet):
    """Waits in its 7th training step for the file TINY_GATE; leaves its process number in the folder TINY_PIDS."""

    steps = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
            if "TINY_PIDS" in os.environ:
                (Path(os.environ["TINY_PIDS"]) / str(os.getpid())).touch()
            while self.steps == 7 and "TINY_GATE" in os.environ and not Path(os.environ["TINY_GATE"]).exists():
                Path(os.environ["TINY_GATE"] + ".reached").touch()
                time.sleep(0.05)
        return super().forward(images)


def slow(num_classes: int, in_channels: int) -> nn.Module:
    return SlowNet(num_classes, in_channels, width=4)


class OneArgument:
    """No distillation loss: it takes one argument."""

    def __init__(self, **numbers: float) -> None:
        self.numbers = numbers

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sum()


def flat(num_classes: int, in_channels: int) -> nn.Module:
    """Batch-norm over single values: cannot train on one image."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Linear(4, num_classes))


class HungryNet(TinyNet):
    """Takes 200 MB an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch.empty(len(images), 50 * 2**20)
        return super().forward(images)


def hungry(num_classes: int, in_channels: int) -> nn.Module:
    return HungryNet(num_classes, in_channels, width=4)
