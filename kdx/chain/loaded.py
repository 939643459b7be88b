"""A stage that is done, read back from its checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from kdx.chain.batches import stage_batches
from kdx.chain.context import RunContext, metadata, network_spec
from kdx.checkpoint import check_metadata, load_hashed, load_weights
from kdx.config.schema import StageSettings
from kdx.data.dataset import Split
from kdx.errors import KdxError
from kdx.files import as_record, from_here
from kdx.metrics.logits import require_numbers
from kdx.models.networks import build_network
from kdx.results import ScoresOnValidation
from kdx.training.evaluation import logits_of

FEW = 4  # images by which a loaded network is tried


@dataclass(frozen=True)
class LoadedStage:
    """The network of a finished stage, on the device, and what its checkpoint says of it."""

    network: nn.Module
    sha256: str
    epoch: int
    validation: dict[str, float]
    guide_fingerprint: str | list[str] | None
    sound: bool = True  # False: weights from elsewhere that answer at chance

    @property
    def classifies(self) -> bool:
        """Whether its answers mean classes: it has a classifier, which has learnt."""
        return "accuracy" in self.validation


def load_network(context: RunContext, stage: StageSettings, checkpoint: Path) -> LoadedStage:
    """The stage's network with a checkpoint's weights; `KdxError` says what does not fit."""
    content, sha256 = load_hashed(checkpoint)
    check_metadata(checkpoint, content.get("meta", {}), metadata(context, stage))
    if not {"epoch", "validation"} <= content.keys():
        raise KdxError(f"{checkpoint}: says nothing of its epoch and its scores on the validation split")
    if stage.head:
        as_record(content["validation"], ScoresOnValidation, checkpoint, "validation")
    network = blank_network(context, stage)
    load_weights(network, content, checkpoint)
    guide = content["meta"].get("guide_fingerprint")
    return LoadedStage(context.precision.place(network), sha256, content["epoch"], content["validation"], guide)


def refuse_key(stage: StageSettings, path: Path) -> None:
    """`KdxError` where the weights of a checkpoint of kdx's are looked for under a key of the user's."""
    if stage.checkpoint_key is not None:
        told = f"kdx itself wrote {from_here(path)} and knows where its weights lie; leave it out"
        raise KdxError(f"stage.{stage.role}.checkpoint_key={stage.checkpoint_key}: is for files of others: {told}")


def blank_network(context: RunContext, stage: StageSettings) -> nn.Module:
    """The stage's network, whose weights are to come: it needs none of ImageNet's."""
    blank = replace(network_spec(context, stage), pretrained=False, freeze_backbone=False, norm_momentum=None)
    return build_network(blank, context.settings.download)


def check_answers(context: RunContext, stage: StageSettings, network: nn.Module, checkpoint: Path) -> None:
    """`KdxError` where a loaded network gives no numbers for the first images of the validation split."""
    few = Split(*context.dataset.val.first(FEW))
    logits = logits_of(
        network, stage_batches(context, stage, "val", replace(context.dataset, val=few)), context.precision
    )
    require_numbers(logits, f"{checkpoint}: the network")
