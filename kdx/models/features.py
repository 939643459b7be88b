"""What a network says and what its layers see: logits with the features of named layers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class Outputs(NamedTuple):
    """float32 logits (B, C) of a batch, and float32 features by the word that asked for them.

    A word stands for one layer or several: `features["stages"]` holds the last maps (B, C, H, W) of each resolution,
    `features["last_map"]` the last of them, `features["pooled"]` the input (B, D) of the classifier.
    """

    logits: Tensor
    features: Mapping[str, Sequence[Tensor]] = {}
