"""Pictures of a finished run: `python -m kdx.visualize RUN_DIR`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from kdx.augmentations import told_augment
from kdx.chain.context import load_dataset, make_run_context
from kdx.cli import compose_one
from kdx.command import Command, Count, Flag, Key, Text, choice, run_command
from kdx.config.schema import Settings
from kdx.data.dataset import Dataset
from kdx.deploy.load import Card
from kdx.deploy.run_loader import StoredStage, load_data, load_stage
from kdx.errors import KdxError
from kdx.results import read_stages
from kdx.run import CONF
from kdx.text import harmless
from kdx.visualize.contact_sheet import draw_sheet, label_names, spread, views_of
from kdx.visualize.feature_maps import (
    features_of,
    label_text,
    last_map_layer,
    save_feature_maps,
    save_figure,
    with_suffix,
)
from kdx.visualize.grad_cam import grad_cam

USAGE = """
python -m kdx.visualize RUN_DIR [role=student] [layer=layer4] [samples=4] [compare=teacher] [--cam]
                        [data_dir=DIR] [network=package.module:callable] [data=package.module:callable]

Draws the feature maps of `layer` (a dotted name; default: the last with maps of more than one pixel) for the first
test images of a finished run, and next to each other what the stage and the one it is compared with look at
(compare=null leaves that out): the mean of the layer's maps, with --cam (cam=true) also Grad-CAM for the true class.

python -m kdx.visualize augment dataset=cifar10 [augment=[crop,flip]] draws what augmentation makes of training images;
`python -m kdx.visualize augment --help` says more.
"""
AUGMENT_USAGE = """
python -m kdx.visualize augment [dataset=cifar10] [augment=LIST|MAPPING] [output=FILE] [seed=42] [data_dir=DIR]
                                [path=DIR] [size=N] [resize=N] [config_dir=DIR]

Draws a sheet of 16 training images, each as it is and as 8 epochs see it. `augment` is what dataset.augment takes, e.g.
[crop,flip] or {resized_crop:{scale:[0.5,1]},mixup:{alpha:0.2}} (default: the data set's own); `path` and `size` are of
dataset=imagefolder, `config_dir` holds data sets of your own.
"""
IMAGES, VIEWS = 16, 8

KEYS: dict[str, Key] = {
    "role": Text("student"),
    "layer": Text(),
    "samples": Count(4, most=1000),
    "compare": Text("teacher", optional=True),
    "cam": Flag(),
    "data_dir": Text(),
    "network": Text(),
    "data": Text(),
}

RUN_KEYS = {  # the keys of a run that the command knows under a shorter name
    "dataset": "dataset",
    "augment": "dataset.augment",
    "data_dir": "data_dir",
    "path": "dataset.path",
    "size": "dataset.size",
    "resize": "dataset.resize",
}
AUGMENT_KEYS: dict[str, Key] = {
    **{name: Text() for name in RUN_KEYS},
    "config_dir": Text(),
    "output": Text(),
    "seed": Count(42, most=2**32 - 1, least=0),
}


def draw_run(
    words: list[str],
    role: str,
    layer: str | None,
    samples: int,
    compare: str | None,
    cam: bool,
    data_dir: str | None,
    network: str | None,
    data: str | None,
) -> str:
    """Pictures of a finished run, into the stage's folder; what was drawn, in words."""
    run_dir = Path(words[0])
    stage = load_stage(run_dir, role, network)
    roles = list(read_stages(run_dir))
    if compare not in (None, KEYS["compare"].default):  # a run without a teacher is drawn by itself
        choice("compare", compare, roles)
    dataset = load_data(stage, data_dir, data)
    images, labels = _prepared(stage, dataset, samples)
    chosen = layer or last_map_layer(stage.network, images)
    if chosen is None:
        raise KdxError(f"role={role}: {stage.meta['network']} has no layer that gives maps")
    folder = stage.checkpoint.parent.parent / "visualizations" / chosen
    drawn = save_feature_maps(stage.network, [(images, labels)], chosen, folder, samples)
    if compare is not None and compare != role and compare in roles:
        other = load_stage(run_dir, compare, network)
        stages = {compare: (other, layer or last_map_layer(other.network, images)), role: (stage, chosen)}
    else:
        stages = {role: (stage, chosen)}
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        panels: dict[str, Tensor] = {}
        for name, (shown, at) in stages.items():
            if at is None:
                continue
            panels[f"{name}: mean of {at}"] = features_of(shown.network, image[None], at)[0].mean(dim=0)
            if cam:
                panels[f"{name}: Grad-CAM"] = grad_cam(shown.network, image[None], at, label)
        path = folder / f"side_by_side_{number}_label_{label_text(label)}.png"
        _draw_side_by_side(dataset.test.images[number], panels, label_names(label, dataset), path)
        drawn.append(path)
    said = [f"layer {chosen} of {role}: {stage.meta['network']}"]
    if max(features_of(stage.network, images[:1], chosen).shape[2:]) == 1:
        said.append("its maps are of one pixel and show no place: choose an earlier layer")
    return "\n".join([*said, *(f"wrote {harmless(str(path))}" for path in drawn)])


def _prepared(stage: StoredStage, data: Dataset, samples: int) -> tuple[Tensor, Tensor]:
    """The first test images as the network sees them, and their labels."""
    images, labels = data.test.first(samples)
    return Card.of(stage.meta, stage.checkpoint).prepared.on(torch.device("cpu"))(images), labels


def _draw_side_by_side(image: Tensor, panels: dict[str, Tensor], title: str, path: Path) -> None:
    """An image (C, H, W) of 0-255 and maps (H, W) laid over it, each scaled to its own range."""
    figure = Figure(figsize=(2.6 * (1 + len(panels)), 3.1), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(harmless(title), parse_math=False)
    shown = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    height, width = shown.shape[:2]
    for position, (name, heat) in enumerate([("image", None), *panels.items()]):
        axes = figure.add_subplot(1, 1 + len(panels), position + 1)
        axes.set_axis_off()
        axes.set_title(name, fontsize=8, parse_math=False)
        axes.imshow(shown, extent=(0, width, height, 0), interpolation="nearest")
        if heat is not None:
            axes.imshow(heat.numpy(), extent=(0, width, height, 0), cmap="viridis", alpha=0.75, interpolation="nearest")
    save_figure(figure, path)


def draw_augment(words: list[str], output: str | None, seed: int, **keys: str | None) -> str:
    """A contact sheet of training images under a run's augmentation; where it was written, in words."""
    settings = _settings(keys, seed)
    dataset = load_dataset(settings)
    context = make_run_context(settings, dataset)
    few = spread(dataset.train, IMAGES)
    views = views_of(few, context.preprocessing, settings.augment, dataset.num_classes, VIEWS, seed)
    title = f"{settings.dataset_name}: {told_augment(settings.augment)}"
    path = with_suffix(Path(output or f"augment_{settings.dataset_name}.png"))
    draw_sheet(views, dataset, few.labels, title, path)
    return f"{title}\nwrote {harmless(str(path))}"


def _settings(keys: Mapping[str, str | None], seed: int) -> Settings:
    """The settings of a run with these keys of its data set."""
    overrides = [f"seed={seed}", "device=cpu", "amp=off"]
    for name, value in keys.items():
        if value is None or name == "config_dir":
            continue
        if name == "augment":
            value = value if value[:1] in ("[", "{") else f"[{value}]"
        elif name in ("data_dir", "path"):
            value = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        overrides.append(f"{RUN_KEYS[name]}={value}")
    base = [] if keys["config_dir"] is None else ["--config-dir", keys["config_dir"]]
    return compose_one(CONF, base, overrides)


COMMAND = Command(USAGE, draw_run, KEYS, words=("RUN_DIR",))
AUGMENT_COMMAND = Command(AUGMENT_USAGE, draw_augment, AUGMENT_KEYS, words=("augment",))


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    run_command(AUGMENT_COMMAND if "augment" in arguments[:1] else COMMAND, arguments)


if __name__ == "__main__":
    main()
