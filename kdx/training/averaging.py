"""An exponential average of a network's weights, which validates better than the last step's (1803.05407)."""

import copy
from typing import Any

import torch
from torch import nn


class Average:
    """`network` with weights and buffers averaged over the steps: average = decay * average + (1 - decay) * weights.

    With decay 0 it is the network itself, and nothing is computed or saved.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.source, self.decay = network, decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval() if decay else network

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights in after a step; whole numbers, such as batch-norm's count of batches, are copied."""
        if not self.decay:
            return
        pairs = list(zip(self._values(self.network), self._values(self.source), strict=True))
        ours, theirs = ([p[side] for p in pairs if p[0].is_floating_point()] for side in (0, 1))
        torch._foreach_lerp_(ours, theirs, 1 - self.decay)
        for mine, value in pairs:
            if not mine.is_floating_point():
                mine.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return self.network.state_dict() if self.decay else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.decay:
            self.network.load_state_dict(state)

    @staticmethod
    def _values(network: nn.Module) -> list[torch.Tensor]:
        return [*network.parameters(), *network.buffers()]
