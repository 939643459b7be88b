"""A teacher without a classifier: its weights come from a file or with the network, and it teaches features only."""

import hashlib
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from kdx.chain.context import RunContext, network_spec
from kdx.chain.loaded import LoadedStage, blank_network, refuse_key
from kdx.checkpoint import load_checkpoint, weights_of
from kdx.config.schema import StageSettings
from kdx.errors import KdxError, errors_of
from kdx.files import from_here, hash_file
from kdx.models.features import eval_mode
from kdx.models.foreign import fit_names, is_kdx_file, load_foreign, read_weights
from kdx.models.networks import build_network, count_parameters
from kdx.models.timm_networks import PREFIX, tell_licence
from kdx.reproducibility import derive_seed
from kdx.users_code import users_code

log = logging.getLogger(__name__)


def headless_source(stage: StageSettings) -> Path | None:
    """The file that holds the weights; None where the network brings its own. `KdxError` where nothing does."""
    key = f"stage.{stage.role}.checkpoint"
    if stage.checkpoint is not None:
        if not Path(stage.checkpoint).is_file():
            raise KdxError(f"{key}={stage.checkpoint}: no such file")
        return Path(stage.checkpoint)
    if not stage.pretrained and (":" not in stage.network or stage.network.startswith("kdx.")):
        needed = f"{key}=FILE or stage.{stage.role}.pretrained=true is needed: it is not trained"
        raise KdxError(f"stage.{stage.role}.head=false: {needed}")
    return None


def import_features(context: RunContext, stage: StageSettings, path: Path | None) -> LoadedStage:
    """The stage's network without classifier, with its weights; `KdxError` unless it returns features (N, D)."""
    spec, called = network_spec(context, stage), f"model.{stage.role}={stage.network}"
    if path is None:
        torch.manual_seed(derive_seed(context.settings.seed, stage.role, "init"))
        network = build_network(spec, context.settings.download)
        if stage.network.startswith(PREFIX):
            tell_licence(stage.network)
    else:
        network = blank_network(context, stage)
        _load(network, stage, path, called)
    with users_code(f"{called} fails on {context.input_size[0]}x{context.input_size[1]} images"):
        with eval_mode(network), torch.no_grad():
            features = network(torch.zeros(2, spec.in_channels, *context.input_size))
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        raise KdxError(f"{called} with stage.{stage.role}.head=false returns {shape} for 2 images, not features (2, D)")
    sha256 = hash_of(network) if path is None else hash_file(path)
    where = "as it is built" if path is None else from_here(path)
    told = f"{count_parameters(network):,} weights, {features.shape[1]} features; it has no accuracy"
    log.info("%s: %s %s: %s", stage.role, stage.network, where, told)
    return LoadedStage(context.precision.place(network.eval()), sha256, 0, {}, None)


def hash_of(network: nn.Module) -> str:
    """sha256 of a network's weights by name."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load(network: nn.Module, stage: StageSettings, path: Path, called: str) -> None:
    """All weights that the network has; what else the file holds, such as its classifier, is told and left."""
    own = network.state_dict()
    with errors_of(f"stage.{stage.role}.checkpoint"):
        ours = is_kdx_file(path)
    if ours:
        refuse_key(stage, path)
    with errors_of(f"stage.{stage.role}.checkpoint"):
        weights = weights_of(load_checkpoint(path)) if ours else read_weights(path, stage.checkpoint_key)
        fitted = fit_names(weights, own)
        load_foreign(network, {name: value for name, value in fitted.items() if name in own}, path, called)
    left = [name for name in fitted if name not in own]
    if left:
        log.info("%s: left out of %s: %s", stage.role, from_here(path), ", ".join(left[:6]))
