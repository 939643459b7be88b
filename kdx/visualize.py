"""Pictures of what a layer sees: `python -m kdx.visualize RUN_DIR`. Figures need no display."""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from kdx.command import run_command
from kdx.dataset import Dataset
from kdx.deploy import Card, needs
from kdx.errors import KdxError
from kdx.models import capture_features
from kdx.plots import plain_text
from kdx.stored import StoredStage, load_data, load_stage, read_summary

USAGE = """
python -m kdx.visualize RUN_DIR [role=student] [layer=layer4] [samples=4] [compare=teacher] [cam=true]
                        [data_dir=DIR] [network=package.module:callable]

Draws the feature maps of `layer` (a dotted name; default: the last with maps of more than one pixel) for the first
test images of a finished run, and next to each other what the stage and the one it is compared with look at
(compare=null leaves that out): the mean of the layer's maps, with cam=true also Grad-CAM for the true class.
"""


DEFAULTS = {
    "role": "student",
    "layer": None,
    "samples": 4,
    "compare": "teacher",
    "cam": False,
    "data_dir": None,
    "network": None,
}


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
        _save(figure, Path(save_path))
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
    features = _features(model, image[:1], layer_name)
    if features.ndim == 4:
        visualize_feature_maps(features, num_maps, f"{layer_name} {tuple(features.shape[1:])}", save_path)
    else:
        raise KdxError(
            f"layer={layer_name}: gives {tuple(features.shape)}, no maps (1, C, H, W); choose an earlier layer"
        )
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
    for images, labels in data_loader:
        for image, label in zip(images, labels, strict=True):
            if len(paths) == num_samples:
                return paths
            path = Path(save_dir) / f"feature_maps_{len(paths)}_label_{_label_text(label)}.png"
            extract_and_visualize_features(model, image, layer_name, save_path=path)
            paths.append(path)
    return paths


def last_map_layer(model: nn.Module, input_tensor: Tensor) -> str | None:
    """The dotted name of the last top-level layer that gives maps of more than one pixel, or of any maps at all."""
    found = None
    for name, module in model.named_children():
        if not any(True for _ in module.parameters()):
            continue
        try:
            features = _features(model, input_tensor[:1], name)
        except (KdxError, AttributeError):
            continue
        if features.ndim == 4 and (found is None or min(features.shape[2:]) > 1):
            found = name
    return found


def _features(model: nn.Module, image: Tensor, layer: str) -> Tensor:
    was_training = model.training
    model.eval()
    try:
        with capture_features(model, layer) as seen, torch.no_grad():
            model(image)
    finally:
        model.train(was_training)
    if not seen:
        raise KdxError(f"layer={layer}: the network does not call it")
    return seen[0]


def _label_text(label: Tensor) -> str:
    """A class number, or the set labels of a multi-label image joined by '+'."""
    if label.ndim == 0:
        return str(int(label))
    return "+".join(str(i) for i in torch.nonzero(label).flatten().tolist()) or "none"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def draw_run(
    words: list[str],
    role: str,
    layer: str | None,
    samples: int,
    compare: str | None,
    cam: bool,
    data_dir: str | None,
    network: str | None,
) -> str:
    """Pictures of a finished run, into the stage's folder; what was drawn, in words."""
    run_dir = Path(words[0])
    stage = load_stage(run_dir, role, network)
    data = load_data(stage, data_dir)
    images, labels = _prepared(stage, data, samples)
    chosen = layer or last_map_layer(stage.network, images)
    if chosen is None:
        raise KdxError(f"role={role}: {stage.meta['network']} has no layer that gives maps")
    folder = stage.checkpoint.parent.parent / "visualizations" / chosen
    drawn = save_feature_maps(stage.network, [(images, labels)], chosen, folder, samples)
    if compare is not None and compare != role and compare in read_summary(run_dir):
        other = load_stage(run_dir, compare, network)
        stages = {compare: (other, layer or last_map_layer(other.network, images)), role: (stage, chosen)}
    else:
        stages = {role: (stage, chosen)}
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        panels: dict[str, Tensor] = {}
        for name, (shown, at) in stages.items():
            if at is None:
                continue
            panels[f"{name}: mean of {at}"] = _features(shown.network, image[None], at)[0].mean(dim=0)
            if cam:
                panels[f"{name}: Grad-CAM"] = grad_cam(shown.network, image[None], at, label)
        path = folder / f"side_by_side_{number}_label_{_label_text(label)}.png"
        _draw_side_by_side(data.test.images[number], panels, _label_names(label, data), path)
        drawn.append(path)
    said = [f"layer {chosen} of {role}: {stage.meta['network']}"]
    if max(_features(stage.network, images[:1], chosen).shape[2:]) == 1:
        said.append("its maps are of one pixel and show no place: choose an earlier layer")
    return "\n".join([*said, *(f"wrote {path}" for path in drawn)])


def grad_cam(model: nn.Module, image: Tensor, layer: str, label: Tensor) -> Tensor:
    """Where a layer speaks for a class (1610.02391): (H, W) in 0-1 for one image (1, C, H, W)."""
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        raise needs("grad-cam", "cam", "cam=true") from None
    target = int(label) if label.ndim == 0 else int(label.long().argmax())  # of a multi-label image its first label
    was_training = model.training
    model.eval()
    try:
        with GradCAM(model=model, target_layers=[model.get_submodule(layer)]) as cam:
            heat = cam(input_tensor=image, targets=[ClassifierOutputTarget(target)])
    finally:
        model.train(was_training)
    return torch.from_numpy(heat[0])


def _prepared(stage: StoredStage, data: Dataset, samples: int) -> tuple[Tensor, Tensor]:
    """The first test images as the network sees them, and their labels."""
    images, labels = data.test.first(samples)
    return Card.of(stage.meta, stage.checkpoint).prepared.on(torch.device("cpu"))(images), labels


def _draw_side_by_side(image: Tensor, panels: dict[str, Tensor], title: str, path: Path) -> None:
    """An image (C, H, W) of 0-255 and maps (H, W) laid over it, each scaled to its own range."""
    figure = Figure(figsize=(2.6 * (1 + len(panels)), 3.1), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(plain_text(title))
    shown = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    height, width = shown.shape[:2]
    for position, (name, heat) in enumerate([("image", None), *panels.items()]):
        axes = figure.add_subplot(1, 1 + len(panels), position + 1)
        axes.set_axis_off()
        axes.set_title(name, fontsize=8)
        axes.imshow(shown, extent=(0, width, height, 0), interpolation="nearest")
        if heat is not None:
            axes.imshow(heat.numpy(), extent=(0, width, height, 0), cmap="viridis", alpha=0.75, interpolation="nearest")
    _save(figure, path)


def _label_names(label: Tensor, data: Dataset) -> str:
    numbers = [int(label)] if label.ndim == 0 else torch.nonzero(label).flatten().tolist()
    return ", ".join(data.class_names[number] for number in numbers) or "no label"


if __name__ == "__main__":
    run_command(USAGE, draw_run, DEFAULTS)
