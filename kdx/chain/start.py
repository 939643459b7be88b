"""The weights that a stage starts from: those of another stage or of a file, all that fit its network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdx.chain.context import RunContext
from kdx.chain.loaded import refuse_key
from kdx.checkpoint import load_checkpoint, weights_of
from kdx.config.schema import StageSettings
from kdx.errors import KdxError, errors_of
from kdx.files import from_here
from kdx.models.features import classifier_of
from kdx.models.foreign import COUNTER, is_kdx_file, read_weights, take_fitting
from kdx.text import first_names

MOST_NAMES = 4  # weights that are told by name


@dataclass(frozen=True)
class Start:
    """Weights by name, where they come from in words, and whether the classifier among them is for other classes.

    `classes` is how many the network that takes them is for.
    """

    weights: Mapping[str, Tensor]
    where: str
    other_classes: bool = False
    classes: int | None = None


def start_of_file(context: RunContext, stage: StageSettings) -> Start | None:
    """The start that a stage's `start` names as a file, of kdx or of anybody; None where it names none."""
    if stage.start is None:
        return None
    path = Path(stage.start)
    with errors_of(f"stage.{stage.role}.start"):
        if not is_kdx_file(path):
            return Start(read_weights(path, stage.checkpoint_key), from_here(path))
    refuse_key(stage, path)
    with errors_of(f"stage.{stage.role}.start"):
        content = load_checkpoint(path)
    meta: Mapping[str, Any] = content.get("meta", {})
    other = meta.get("class_names") != list(context.dataset.class_names)
    return Start(weights_of(content), from_here(path), other, context.dataset.num_classes)


def begin(network: nn.Module, start: Start, role: str) -> str:
    """Give the network all weights of a start that fit it, and say which ones; `KdxError` where none does."""
    weights = start.weights
    if start.other_classes:
        head = f"{classifier_of(network, start.classes)[0]}."
        weights = {name: value for name, value in weights.items() if not name.startswith(head)}
    taken = take_fitting(network, weights, Path(start.where))
    own = [name for name in network.state_dict() if not name.endswith(COUNTER)]
    anew = [name for name in own if name not in taken]
    if len(anew) == len(own):
        raise KdxError(f"stage.{role}.start={start.where}: none of its weights fits the network")
    told = f"starts from {start.where}: {len(own) - len(anew)} of {len(own)} weights"
    return f"{told}; anew: {first_names(anew, MOST_NAMES)}" if anew else told
