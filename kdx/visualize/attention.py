"""Where a vision transformer looks: its attention through all blocks, and the last block's heads one by one."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdx.errors import KdxError
from kdx.models.features import eval_mode
from kdx.visualize.feature_maps import first_images
from kdx.visualize.overlay import draw_overlay

MOST_HEADS = 8  # drawn
HEADS = {"need_weights": True, "average_attn_weights": False}  # what torch's attention returns its weights for


def attends(model: nn.Module) -> bool:
    """Whether a network is a vision transformer whose attention can be drawn: each token looks at all others."""
    return bool(_layers(model))


def attention_of(model: nn.Module, images: Tensor) -> Tensor:
    """Attention (blocks, B, heads, T, T) of a ViT of timm's or torchvision's for images (B, C, H, W); rows sum to 1.

    The logits are the same as without looking. `KdxError` for a network without such attention.
    """
    layers = _layers(model)
    if not layers:
        raise KdxError(f"{type(model).__name__} has no attention among all patches of an image to draw")
    seen: list[Tensor] = []
    with _watched(layers, seen), eval_mode(model), torch.no_grad():
        model(images)
    return torch.stack([each.float().cpu() for each in seen])


def rollout(attention: Tensor) -> Tensor:
    """How much of each token reaches each other one through all blocks (2005.00928): (B, T, T), rows sum to 1.

    `attention` is (blocks, B, heads, T, T); heads are averaged, and half of a token goes past each block.
    """
    mean = attention.mean(dim=2)
    mean = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1])
    mean = mean / mean.sum(dim=-1, keepdim=True)
    flow = mean[0]
    for block in mean[1:]:
        flow = block @ flow
    return flow


def attention_maps(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The rollout (B, h, w) and the last block's heads (B, heads, h, w), from the class token to the patches.

    Of a network without a class token the mean over the patches that look.
    """
    attention = attention_of(model, images)
    prefix = getattr(model, "num_prefix_tokens", 1)  # torchvision's ViTs have a class token
    height, width = _grid(attention.shape[-1] - prefix, images.shape[2:])
    flow, heads = rollout(attention), attention[-1]
    maps = [each[..., 0, prefix:] if prefix else each.mean(dim=-2) for each in (flow, heads)]
    return maps[0].unflatten(-1, (height, width)), maps[1].unflatten(-1, (height, width))


def save_attention_maps(
    model: nn.Module,
    data_loader: Iterable[tuple[Tensor, Tensor]],
    save_dir: str | Path = "visualizations",
    num_samples: int = 5,
) -> list[Path]:
    """`attention_<n>_label_<label>.png` for the first images of a loader of (images, labels); the files' paths.

    Each shows the image, the rollout laid over it, and the heads of the last block.
    """
    paths: list[Path] = []
    for image, name in first_images(data_loader, num_samples):
        paths.append(Path(save_dir) / f"attention_{name}.png")
        flow, heads = attention_maps(model, image[None])
        panels = {"rollout": flow[0]}
        panels |= {f"head {number}": head for number, head in enumerate(heads[0][:MOST_HEADS])}
        draw_overlay(image, panels, paths[-1])
    return paths


def _layers(model: nn.Module) -> list[Any]:
    """The attention layers of a ViT: timm's, which have dropout of their weights, or torch's."""
    ours = [m for m in model.modules() if hasattr(m, "attn_drop") and hasattr(m, "fused_attn")]
    if ours and hasattr(model, "num_prefix_tokens"):
        return ours
    return [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]


@contextmanager
def _watched(layers: list[Any], seen: list[Tensor]) -> Iterator[None]:
    """Collect the weights of attention layers; afterwards they compute as before."""
    hooks, fused = [], {}
    for layer in layers:
        if isinstance(layer, nn.MultiheadAttention):
            hooks.append(layer.register_forward_pre_hook(lambda m, a, k: (a, {**k, **HEADS}), with_kwargs=True))
            hooks.append(layer.register_forward_hook(lambda m, inputs, output: seen.append(output[1])))
        else:
            fused[layer], layer.fused_attn = layer.fused_attn, False
            hooks.append(layer.attn_drop.register_forward_hook(lambda m, inputs, output: seen.append(output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, before in fused.items():
            layer.fused_attn = before


def _grid(tokens: int, size: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the patches of an image of this height and width."""
    height = max(1, round(math.sqrt(tokens * size[0] / size[1])))
    if tokens % height:
        raise KdxError(f"{tokens} tokens are no grid of patches of {size[0]}x{size[1]} px")
    return height, tokens // height
