"""Maps laid over the image that they belong to."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from kdx.text import harmless
from kdx.visualize.feature_maps import save_figure

WIDTH, HEIGHT, TITLE = 2.2, 2.4, 0.4  # inches a panel, and of a title above all
OPACITY = 0.7


def draw_overlay(image: Tensor, panels: Mapping[str, Tensor], path: Path, title: str = "") -> None:
    """An image (C, H, W), and beside it maps (h, w) of any size laid over it by name, each scaled to its own range.

    Pixels are uint8 of 0-255; floats of any range are scaled to their own.
    """
    figure = Figure(figsize=(WIDTH * (1 + len(panels)), HEIGHT + (TITLE if title else 0)), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(harmless(title), parse_math=False)
    pixels = image.detach().cpu()
    if pixels.is_floating_point():
        low, high = pixels.float().amin(), pixels.float().amax()
        pixels = (pixels.float() - low) / (high - low).clamp(min=1e-9)
    shown = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    extent = (0, shown.shape[1], shown.shape[0], 0)
    for position, (name, heat) in enumerate([("image", None), *panels.items()]):
        axes = figure.add_subplot(1, 1 + len(panels), position + 1)
        axes.set_axis_off()
        axes.set_title(name, fontsize=8, parse_math=False)
        axes.imshow(shown, extent=extent, interpolation="nearest")
        if heat is not None:
            axes.imshow(heat.numpy(), extent=extent, cmap="viridis", alpha=OPACITY, interpolation="nearest")
    save_figure(figure, path)
