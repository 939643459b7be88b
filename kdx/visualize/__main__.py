"""`python -m kdx.visualize`: what it takes. torch and matplotlib are imported when there is something to draw."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdx.command import Command, Count, Flag, Key, Text, run_command
from kdx.compose import compose_one
from kdx.config.schema import Settings
from kdx.config.stage_overrides import quoted
from kdx.errors import KdxError
from kdx.run import CONF
from kdx.text import harmless

USAGE = """
python -m kdx.visualize RUN_DIR [role=student] [layer=layer4] [samples=4] [compare=teacher] [--cam]
                        [data_dir=DIR] [network=package.module:callable] [data=package.module:callable]

Draws the feature maps of `layer` (a dotted name; default: the last with maps of more than one pixel) for test
images of a finished run, the first of each class in turn; of a vision transformer its attention, through all blocks
(rollout) and head by head. And next to each other what the stage and the one it is compared with look at (compare=null
leaves that out): the mean of the layer's maps or the rollout, with --cam (cam=true) also Grad-CAM for the true class.

python -m kdx.visualize augment dataset=cifar10 [augment=[crop,flip]] draws what augmentation makes of training images;
`python -m kdx.visualize augment --help` says more.
"""
AUGMENT_USAGE = """
python -m kdx.visualize augment [dataset=cifar10] [dataset.augment=LIST|MAPPING] [output=FILE] [seed=42] [data_dir=DIR]
                                [dataset.path=DIR] [dataset.size=N] [dataset.resize=N] [dataset.white=N]
                                [config_dir=DIR]

Draws a sheet of 16 training images, each as it is and as 8 epochs see it. The keys are a run's, e.g. dataset.augment=
[crop,flip] or {resized_crop:{scale:[0.5,1]},mixup:{alpha:0.2}} (default: the data set's own); `dataset.` may be left
out. `config_dir` holds data sets of your own.
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

OF_DATASET = ("augment", "path", "size", "resize", "white")  # keys of a run, also under these shorter names
AUGMENT_KEYS: dict[str, Key] = {
    **{name: Text() for name in ("dataset", "data_dir", *OF_DATASET)},
    **{f"dataset.{name}": Text() for name in OF_DATASET},
    "config_dir": Text(),
    "output": Text(),
    "seed": Count(42, most=2**32 - 1, least=0),
}


def draw(words: list[str], **keys: Any) -> str:
    from kdx.visualize.run_pictures import draw_run

    return draw_run(Path(words[0]), **keys)


def draw_augment(words: list[str], output: str | None, seed: int, **keys: str | None) -> str:
    """A contact sheet of training images under a run's augmentation; where it was written, in words."""
    from kdx.augmentations import told_augment
    from kdx.chain.context import load_dataset, make_run_context
    from kdx.data.dataset import Split
    from kdx.visualize.contact_sheet import draw_sheet, views_of
    from kdx.visualize.feature_maps import with_suffix

    settings = _settings(keys, seed)
    dataset = load_dataset(settings)
    context = make_run_context(settings, dataset)
    few = Split(*dataset.train.spread(IMAGES))
    views = views_of(few, context.preprocessing, settings.augment, dataset.num_classes, VIEWS, seed)
    title = f"{settings.dataset_name}: {told_augment(settings.augment)}"
    path = with_suffix(Path(output or f"augment_{settings.dataset_name}.png"))
    draw_sheet(views, dataset, few.labels, title, path)
    return f"{title}\nwrote {harmless(str(path))}"


def _settings(keys: Mapping[str, str | None], seed: int) -> Settings:
    """The settings of a run with these keys of its data set."""
    overrides = [f"seed={seed}", "device=cpu", "amp=off"]
    for name in OF_DATASET:
        if None not in (keys[name], keys[f"dataset.{name}"]):
            raise KdxError(f"dataset.{name}: given twice, also as {name}")
    for name, value in keys.items():
        if value is None or name == "config_dir":
            continue
        key = f"dataset.{name}" if name in OF_DATASET else name
        if key == "dataset.augment":
            value = value if value[:1] in ("[", "{") else f"[{value}]"
        elif key in ("data_dir", "dataset.path"):
            value = quoted(value)
        overrides.append(f"{key}={value}")
    base = [] if keys["config_dir"] is None else ["--config-dir", keys["config_dir"]]
    return compose_one(CONF, base, overrides)


COMMAND = Command(USAGE, draw, KEYS, words=("RUN_DIR",))
AUGMENT_COMMAND = Command(AUGMENT_USAGE, draw_augment, AUGMENT_KEYS, words=("augment",))


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    run_command(AUGMENT_COMMAND if "augment" in arguments[:1] else COMMAND, arguments)


if __name__ == "__main__":
    main()
