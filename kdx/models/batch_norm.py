"""Batch-norm's running statistics: an average over steps, by which validation sees the network."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

USUAL = 0.1  # share of each step; torch's default
SLOW = ("efficientnet_b5", "efficientnet_b6", "efficientnet_b7", "maxvit", "mnasnet", "mobilenet_v3")
UNSEEN = 0.05  # of the statistics that may still be those before training


def momentum_for(name: str, pretrained: bool) -> float | None:
    """The momentum that a torchvision network is given instead of its own; None where its own stands.

    Some are defined for hundreds of epochs, with 0.01 and less: from scratch a short training would be validated by
    statistics that are not yet the network's, at chance. ImageNet weights bring statistics of their own.
    """
    return USUAL if name.startswith(SLOW) and ":" not in name and not pretrained else None


def set_momentum(network: nn.Module, momentum: float) -> None:
    """Give every batch-norm layer this momentum."""
    for layer in _layers(network):
        layer.momentum = momentum


def slow_momentum(network: nn.Module, steps: int) -> float | None:
    """The momentum of a layer that after so many steps mostly validates by its first statistics; None without one.

    Layers as fast as torch's default are left alone: so few steps teach nothing anyway.
    """
    moving = [layer for layer in _layers(network) if layer.weight is None or layer.weight.requires_grad]
    momenta = [layer.momentum for layer in moving if layer.momentum is not None]
    return min((own for own in momenta if own < USUAL and (1 - own) ** steps > UNSEEN), default=None)


def _layers(network: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
