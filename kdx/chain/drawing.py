"""Pictures of what a stage looks at, drawn while it trains and when it is done."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from kdx.chain.batches import stage_batches
from kdx.chain.context import RunContext
from kdx.config.schema import StageSettings
from kdx.data.dataset import Split
from kdx.training.keeper import is_due


def draw_feature_maps(
    context: RunContext, stage: StageSettings, network: nn.Module, folder: Path, split: str = "test"
) -> None:
    """`feature_maps_*.png` in `folder` of images of each class of a split, or `attention_*.png` of a transformer."""
    requested = context.settings.visualize
    if not requested.samples:
        return
    from kdx.visualize.attention import attends, save_attention_maps  # imports matplotlib
    from kdx.visualize.feature_maps import last_map_layer, save_feature_maps

    few = Split(*getattr(context.dataset, split).of_each_class(requested.samples))
    batches = stage_batches(context, stage, split, replace(context.dataset, val=few, test=few))
    layer = requested.layer or last_map_layer(network, next(batches.epoch(0)).images)
    pairs = ((batch.images, batch.labels) for batch in batches.epoch(0))
    if layer is not None:
        save_feature_maps(network, pairs, layer, folder, requested.samples)
    elif attends(network):
        save_attention_maps(network, pairs, folder, requested.samples)


def drawing_while_trained(
    context: RunContext, stage: StageSettings, network: nn.Module, folder: Path
) -> Callable[[int], None] | None:
    """What draws feature maps of validation images every `visualize.every` epochs."""
    every = context.settings.visualize.every
    if not every:
        return None

    def draw(epoch: int) -> None:
        if is_due(epoch, every):
            draw_feature_maps(context, stage, network, folder / "visualizations" / f"epoch_{epoch:04d}", "val")

    return draw
