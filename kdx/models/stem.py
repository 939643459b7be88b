"""The first layers of a network, which decide at how many pixels its blocks see small images."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kdx.errors import KdxError
from kdx.models.features import eval_mode

SMALL, IMAGENET = "small", "imagenet"
FINER = "finer"  # what `small` is for a ResNet with ImageNet weights, whose first convolution must keep its shape
SMALL_UP_TO = 64  # px; an ImageNet stem would leave a 32 px image 8 px before the first block
LEAST_SIDE = 3.5  # px of the last maps: networks that divide by 32 keep two halvings less at 28 and 32 px, one at 64
PROBE = 128  # px of the image by which the layers that shrink it are found
LAYERS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def has_resnet_stem(name: str) -> bool:
    """Whether a network of this name has the stem that ResNets for ImageNet have, and another for small images."""
    return ":" not in name and name.startswith(("resnet", "resnext", "wide_resnet"))


def resolve_stem(stem: str, name: str, pretrained: bool, image_size: int) -> str:
    """`auto` as `small` for a ResNet from scratch on images up to 64 px, else as `imagenet`."""
    if stem == SMALL and pretrained and has_resnet_stem(name):
        return FINER
    if stem != "auto":
        return stem
    return SMALL if has_resnet_stem(name) and not pretrained and image_size <= SMALL_UP_TO else IMAGENET


def use_resnet_stem(network: nn.Module) -> None:
    """3x3 convolution with stride 1 and no max-pool, the CIFAR form of a ResNet (1512.03385, 4.2)."""
    conv = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule("conv1", conv)
    network.set_submodule("maxpool", nn.Identity())


def use_finer_strides(network: nn.Module, name: str, channels: int, image_size: int) -> None:
    """Let the first layers that halve an image leave its size, as many as small images need; no weight changes.

    `KdxError` for a network that has no such layers, or is built for one size.
    """
    try:
        strided = list(_strided(network, channels))
    except Exception as error:  # a ViT takes the size only that it was built for
        raise KdxError(f"model.stem=small: '{name}' is no CNN that takes images of any size ({error})") from error
    if not strided:
        raise KdxError(f"model.stem=small: '{name}' has no layer that halves images")
    levels = [[layer for known, layer in strided if known == side] for side in sorted({s for s, _ in strided})[::-1]]
    spared = _halvings(image_size / math.prod(_stride(level[0]) for level in levels))
    for level in levels:
        taken = min(spared, *(int(math.log2(_stride(layer))) for layer in level))
        for layer in level:
            layer.stride = tuple(stride // 2**taken for stride in _pair(layer.stride))
        spared -= taken


def _halvings(side: float) -> int:
    """How many halvings must be spared where the last maps would have this side."""
    return max(0, math.ceil(math.log2(LEAST_SIDE / side)))


def _strided(network: nn.Module, channels: int) -> Iterator[tuple[int, Any]]:
    """The layers that shrink an image, each with the side of what it is given, which parallel branches share."""
    seen: dict[nn.Module, int] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if layer not in seen and _stride(layer) > 1 and min(output.shape[2:]) > 0:
            seen[layer] = inputs[0].shape[2]

    hooks = [layer.register_forward_hook(note) for layer in network.modules() if isinstance(layer, LAYERS)]
    try:
        with eval_mode(network), torch.no_grad():
            network(torch.zeros(1, channels, PROBE, PROBE))
    finally:
        for hook in hooks:
            hook.remove()
    yield from ((side, layer) for layer, side in seen.items())


def _stride(layer: Any) -> int:
    return min(_pair(layer.stride))


def _pair(stride: int | tuple[int, ...]) -> tuple[int, ...]:
    return (stride, stride) if isinstance(stride, int) else stride
