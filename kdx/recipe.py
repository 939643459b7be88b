"""The numbers of a stage's training that are no part's own. Imports no torch."""

from dataclasses import dataclass, fields
from typing import Any

from kdx.ranges import Choice, Either, ListOf, Nullable, Real, Whole, key

SELECTIONS = AUTO, ACCURACY, AUC, F1, LOSS = ("auto", "accuracy", "auc", "f1", "loss")
SCORES = {ACCURACY: "accuracy", AUC: "auc", F1: "f1_score", LOSS: "loss"}  # the name of each among scores
DECIMALS = {ACCURACY: 2, AUC: 4, F1: 2, LOSS: 4}  # accuracy and F1 are in percent
BALANCED = "balanced"
CLASS_WEIGHTS = Either((Choice((BALANCED,)), ListOf(Real(above=0, most=1e6), fewest=2, most=1_000_000)))
LABELLED = Either((Real(above=0, most=1), Whole(2, 10**12)))


@dataclass
class Recipe:
    """Each is a key of the configuration, `stage.<role>.<key>` for one stage.

    A default is the value that changes nothing; what a run uses stands in conf/config.yaml.
    """

    epochs: int = key(Whole(1, 100_000), 1)
    batch_size: int = key(Whole(1, 65_536), 32)
    micro_batches: int = key(Whole(1, 32_768), 1)  # parts of a batch, one after the other: less memory, one update
    clip_norm: float | None = key(Real(above=0, most=1e30), None)  # the gradients' norm is cut to this
    ema: float = key(Real(least=0, below=1), 0.0)  # decay of an average of the weights, then validated, kept, shipped
    select: str = key(Choice(SELECTIONS), AUTO)  # what on validation chooses the epoch; auto: as the task asks
    patience: int | None = key(Whole(1, 100_000), None)  # epochs without a better one after which training ends
    label_smoothing: float = key(Real(least=0, below=1), 0.0)  # of the loss by the labels
    class_weights: Any = key(Nullable(CLASS_WEIGHTS), None)  # of that loss: balanced, or a number a class
    labelled: float = key(LABELLED, 1.0)  # share (at most 1) or number of training images whose labels may be used


def changed(recipe: Recipe) -> dict[str, Any]:
    """The numbers that are not their defaults, so that a new one leaves the fingerprints of what is finished."""
    numbers = ((field, getattr(recipe, field.name)) for field in fields(recipe))
    return {field.name: value for field, value in numbers if value != field.default}
