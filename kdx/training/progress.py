"""How far a training has come: the best epoch so far, and what is known of the epoch under way."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NUMBERS = ("step", "count", "seconds", "learning_rate")  # of an epoch under way


@dataclass
class Best:
    """The epoch that validation chose so far, by this value of what selects."""

    epoch: int
    value: float
    file: str
    scores: dict[str, float]  # on the validation split


@dataclass
class Losses:
    """Weighted sums of a loss and its named parts, kept on the device as one tensor: a few kernels a step."""

    names: tuple[str, ...] = ()
    sums: Tensor | None = None

    def add(self, terms: dict[str, Tensor], weight: float) -> None:
        """Add scalar terms, each time the same ones, with a weight."""
        self._add(tuple(terms), torch.stack([term.detach().float().reshape(()) for term in terms.values()]) * weight)

    def add_all(self, other: "Losses", weight: float) -> None:
        """Add another's sums with a weight."""
        assert other.sums is not None
        self._add(other.names, other.sums * weight)

    def over(self, add_up: Callable[[Tensor], Tensor]) -> "Losses":
        """The same losses, each added up over all ranks."""
        return self if self.sums is None else Losses(self.names, add_up(self.sums))

    def plain(self) -> dict[str, float]:
        """Name -> sum; waits for the device."""
        return {} if self.sums is None else dict(zip(self.names, self.sums.tolist(), strict=True))

    def _add(self, names: tuple[str, ...], weighted: Tensor) -> None:
        self.names, self.sums = names, weighted if self.sums is None else self.sums + weighted


@dataclass
class EpochProgress:
    """An epoch under way: the sums of losses weighted by the batch's size, and what was predicted so far."""

    step: int = 0
    count: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0  # of its first update
    losses: Losses = field(default_factory=Losses)
    predictions: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    started: float = 0.0  # by this process's clock, as if it had done all of it

    def start_clock(self) -> None:
        self.started = time.perf_counter() - self.seconds

    def read_clock(self) -> float:
        """Seconds spent on the epoch, by earlier processes, too."""
        self.seconds = time.perf_counter() - self.started
        return self.seconds

    def add(self, step: int, losses: Losses, predictions: Tensor, labels: Tensor, known: Tensor | None = None) -> None:
        """Count a step with its mean losses; everything stays on the device. Hidden labels enter no score."""
        self.losses.add_all(losses, len(labels))
        self.step, self.count = step, self.count + len(labels)
        self.predictions.append(predictions if known is None else predictions[known])
        self.labels.append(labels if known is None else labels[known])

    def mean_losses(self) -> dict[str, float]:
        return {name: total / self.count for name, total in self.losses.plain().items()}

    def plain(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        kept = {name: [torch.cat(getattr(self, name)).cpu()] for name in ("predictions", "labels")}
        numbers = {name: getattr(self, name) for name in NUMBERS}
        return {**numbers, "sums": self.losses.plain(), **kept}

    @classmethod
    def of(cls, kept: dict[str, Any], device: torch.device) -> "EpochProgress":
        names, sums = tuple(kept["sums"]), torch.tensor(list(kept["sums"].values()), device=device)
        numbers: dict[str, Any] = {name: kept[name] for name in NUMBERS}
        moved: dict[str, Any] = {n: [value.to(device) for value in kept[n]] for n in ("predictions", "labels")}
        return cls(**numbers, **moved, losses=Losses(names, sums if names else None))


class Progress:
    """How far a training is: the rows of the finished epochs, the best of them, and the epoch under way."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.history: list[dict[str, Any]] = []
        self.best: Best | None = None
        self.under_way = EpochProgress()

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    @property
    def epochs_since_best(self) -> int:
        return 0 if self.best is None else self.epochs - self.best.epoch

    def close_epoch(self, row: dict[str, Any], best: Best | None) -> None:
        """End the epoch under way with its row; `best` is the new best, if it is one."""
        self.history.append(row)
        self.best = best or self.best
        self.under_way = EpochProgress()

    def state_dict(self) -> dict[str, Any]:
        under_way = self.under_way.plain() if self.under_way.step else None
        return {
            "history": list(self.history),
            "best": None if self.best is None else dict(vars(self.best)),
            "epoch_under_way": under_way,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = list(state["history"])
        self.best = None if state["best"] is None else Best(**state["best"])
        kept = state["epoch_under_way"]
        self.under_way = EpochProgress() if kept is None else EpochProgress.of(kept, self.device)
