"""Pictures of what a layer sees. Figures need no display."""

import io
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from kdx.errors import KdxError
from kdx.files import write_atomic
from kdx.models.features import eval_mode
from kdx.models.networks import capture_features


def visualize_feature_maps(
    feature_maps: Tensor, num_maps: int = 16, title: str = "feature maps", save_path: str | Path | None = None
) -> Figure:
    """The first `num_maps` channels of feature maps (C, H, W) or (1, C, H, W) as a grid of grey pictures.

    Each map is scaled to its own range. Written to `save_path` where one is given.
    """
    maps = feature_maps.detach().float().cpu()
    if maps.ndim == 4 and len(maps) == 1:
        maps = maps[0]
    if maps.ndim != 3:
        raise KdxError(f"feature maps of shape {tuple(feature_maps.shape)}: (C, H, W) of one image is needed")
    maps = maps[:num_maps]
    columns = math.ceil(math.sqrt(len(maps)))
    rows = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(1.6 * columns, 1.6 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for position in range(rows * columns):
        axes = figure.add_subplot(rows, columns, position + 1)
        axes.set_axis_off()
        if position < len(maps):
            axes.imshow(maps[position].numpy(), cmap="viridis", interpolation="nearest")
    if save_path is not None:
        save_figure(figure, Path(save_path))
    return figure


def extract_and_visualize_features(
    model: nn.Module,
    input_tensor: Tensor,
    layer_name: str = "layer4",
    num_maps: int = 16,
    save_path: str | Path | None = None,
) -> Tensor:
    """Feature maps (1, C, H, W) of `layer_name` for one image (C, H, W) or (1, C, H, W), drawn to `save_path`.

    The model's mode is restored and the hook removed; `KdxError` lists near matches of an unknown layer.
    """
    image = input_tensor if input_tensor.ndim == 4 else input_tensor[None]
    features = features_of(model, image[:1], layer_name)
    if features.ndim != 4:
        shape = tuple(features.shape)
        raise KdxError(f"layer={layer_name}: gives {shape}, no maps (1, C, H, W); choose an earlier layer")
    visualize_feature_maps(features, num_maps, f"{layer_name} {tuple(features.shape[1:])}", save_path)
    return features


def save_feature_maps(
    model: nn.Module,
    data_loader: Iterable[tuple[Tensor, Tensor]],
    layer_name: str = "layer4",
    save_dir: str | Path = "visualizations",
    num_samples: int = 5,
) -> list[Path]:
    """`feature_maps_<n>_label_<label>.png` for the first images of a loader of (images, labels); the files' paths."""
    paths: list[Path] = []
    for image, name in first_images(data_loader, num_samples):
        paths.append(Path(save_dir) / f"feature_maps_{name}.png")
        extract_and_visualize_features(model, image, layer_name, save_path=paths[-1])
    return paths


def first_images(data_loader: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[Tensor, str]]:
    """The first images (C, H, W) of a loader of (images, labels), each with `<n>_label_<label>` for a file's name."""
    pairs = (pair for images, labels in data_loader for pair in zip(images, labels, strict=True))
    for number, (image, label) in enumerate(islice(pairs, count)):
        yield image, f"{number}_label_{label_text(label)}"


def last_map_layer(model: nn.Module, input_tensor: Tensor) -> str | None:
    """The dotted name of the last top-level layer that gives maps of more than one pixel, or of any maps at all."""
    found = None
    for name, module in model.named_children():
        if not any(True for _ in module.parameters()):
            continue
        try:
            features = features_of(model, input_tensor[:1], name)
        except (KdxError, AttributeError):
            continue
        if features.ndim == 4 and (found is None or min(features.shape[2:]) > 1):
            found = name
    return found


def features_of(model: nn.Module, image: Tensor, layer: str) -> Tensor:
    with eval_mode(model), capture_features(model, layer) as seen, torch.no_grad():
        model(image)
    if not seen:
        raise KdxError(f"layer={layer}: the network does not call it")
    return seen[0]


def label_text(label: Tensor) -> str:
    """A class number, or the set labels of a multi-label image joined by '+'."""
    if label.ndim == 0:
        return str(int(label))
    return "+".join(str(i) for i in torch.nonzero(label).flatten().tolist()) or "none"


def with_suffix(path: Path) -> Path:
    """The file that `save_figure` writes: a PNG where the name ends in no format."""
    return path if path.suffix else path.with_suffix(".png")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the file's name ends in."""
    path = with_suffix(path)
    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, dpi=100, format=path.suffix[1:])
    except ValueError as error:  # matplotlib's word for a format that it does not write
        raise KdxError(f"{path}: {str(error).splitlines()[0]}") from error
    write_atomic(path, drawn.getvalue())
