"""How the learning rate changes while a stage is trained."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from kdx.errors import KdxError

UPDATE, EPOCH = "update", "epoch"


@dataclass(frozen=True)
class Span:
    """How long a training is: epochs, updates of the weights an epoch, and epochs of a linear rise at its start."""

    epochs: int
    updates_per_epoch: int
    warmup: float = 0.0

    @property
    def updates(self) -> int:
        return self.epochs * self.updates_per_epoch

    @property
    def warmup_updates(self) -> int:
        return round(min(self.warmup, self.epochs) * self.updates_per_epoch)


class Curve(LambdaLR):
    """One of kdx's own: a factor of the learning rate, a function of the updates that were made."""


STEPPED_BY_UPDATES = (Curve, OneCycleLR, CyclicLR)  # the others by epochs, as torch documents them


class Schedule:
    """A torch scheduler, or none, under a linear warm-up of its learning rates.

    It steps after every update or after every epoch (`every`; None: as torch documents the scheduler), one that asks
    for a score by that of the validation.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None = None,
        warmup_updates: int = 0,
        every: str | None = None,
    ) -> None:
        self.optimizer, self.scheduler, self.warmup_updates = optimizer, scheduler, warmup_updates
        self.every = every or (UPDATE if isinstance(scheduler, STEPPED_BY_UPDATES) else EPOCH)
        self.updates = 0
        self.rates = self._present()  # the scheduler's own, without the warm-up
        self._apply()

    def after_update(self) -> None:
        """An update of the weights was made."""
        self.updates += 1
        step = self.scheduler.step if self.scheduler is not None and self.every == UPDATE else None
        if step is not None or self.updates <= self.warmup_updates:
            self._change(step)

    def after_epoch(self, score: float) -> None:
        """An epoch was validated with this score."""
        scheduler = self.scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            self._change(lambda: scheduler.step(score))
        elif scheduler is not None and self.every == EPOCH:
            self._change(scheduler.step)

    def rehearse(self, span: Span) -> None:
        """Step through a whole training, as a trial of a scheduler that is not ours."""
        per_epoch = span.updates_per_epoch if self.every == UPDATE and not isinstance(self.scheduler, Curve) else 0
        for _ in range(span.epochs):
            for _ in range(per_epoch):
                self.after_update()
            self.after_epoch(0.0)

    def _change(self, step: Callable[[], Any] | None) -> None:
        """Let the scheduler see and set its own rates, then apply the warm-up to them."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
        if step is not None:
            step()
            self.rates = self._present()
        self._apply()

    def _apply(self) -> None:
        if self.updates < self.warmup_updates:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * (self.updates + 1) / self.warmup_updates

    def _present(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        known = {} if self.scheduler is None else self.scheduler.state_dict()
        return {"scheduler": known, "updates": self.updates, "rates": list(self.rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.updates, self.rates = state["updates"], list(state["rates"])


def cosine(optimizer: torch.optim.Optimizer, span: Span) -> LRScheduler:
    """The learning rate on a half cosine, from its full value at the end of the warm-up towards 0 (1608.03983)."""
    start = span.warmup_updates

    def factor(update: int) -> float:
        done = max(0, update - start) / max(1, span.updates - start)
        return (1 + math.cos(math.pi * min(1.0, done))) / 2

    return Curve(optimizer, factor)


def step(optimizer: torch.optim.Optimizer, span: Span, milestones: Sequence[float], gamma: float) -> LRScheduler:
    """The learning rate times `gamma` at each milestone: below 1 a share of all epochs, from 1 on a number of them."""
    if max(milestones) > span.epochs:
        raise KdxError(
            f"scheduler.milestones={list(milestones)}: the stage has {span.epochs} epochs; lower ones are needed"
        )
    epochs = [milestone * span.epochs if milestone < 1 else milestone for milestone in milestones]
    passed_at = [max(1, round(epoch * span.updates_per_epoch)) for epoch in epochs]
    return Curve(optimizer, lambda update: gamma ** sum(update >= at for at in passed_at))
