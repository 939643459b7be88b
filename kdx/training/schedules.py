"""How the learning rate changes while a stage is trained."""

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


class Schedule:
    """A torch scheduler that steps once an epoch, by the validation's score where it asks for one; or none."""

    def __init__(self, scheduler: LRScheduler | None) -> None:
        self.scheduler = scheduler

    def after_update(self) -> None:
        """An update of the weights was made."""

    def after_epoch(self, score: float) -> None:
        """An epoch was validated with this score."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(score)
        elif self.scheduler is not None:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state)


def step_schedule(
    optimizer: torch.optim.Optimizer, epochs: int, milestones: list[float], gamma: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate times `gamma` after each fraction of `epochs`, e.g. [0.5, 0.75]."""
    rounded = [max(1, round(fraction * epochs)) for fraction in milestones]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, rounded, gamma)
