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
from kdx.reproducibility import derive_seed, one_thread, setup_reproducibility
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


def weights_as_built(context: RunContext, stage: StageSettings) -> str:
    """The sha256 of the weights that the stage's network brings, which is built and kept for who uses it next.

    Nothing else tells these weights: the network may read files, and draw by the run's seed.
    """
    known, key = context.as_built, _key(context, stage)
    if key not in known.hashes:
        network = _build(context, stage)
        _count_features(context, stage, network)  # shapes of lazy layers come with the first images
        known.networks[key], known.hashes[key] = network, hash_of(network)
    return known.hashes[key]


def import_features(context: RunContext, stage: StageSettings, path: Path | None) -> LoadedStage:
    """The stage's network without classifier, with its weights; `KdxError` unless it returns features (N, D)."""
    if path is None:
        kept = context.as_built.networks.pop(_key(context, stage), None)
        network = _build(context, stage) if kept is None else kept
        if stage.network.startswith(PREFIX):
            tell_licence(stage.network)
    else:
        network = blank_network(context, stage)
        _load(network, stage, path)
    features = _count_features(context, stage, network)
    sha256 = hash_of(network) if path is None else hash_file(path)
    where = "as it is built" if path is None else from_here(path)
    told = f"{count_parameters(network):,} weights, {features} features; it has no accuracy"
    log.info("%s: %s %s: %s", stage.role, stage.network, where, told)
    return LoadedStage(context.precision.place(network.eval()), sha256, 0, {}, None)


def hash_of(network: nn.Module) -> str:
    """sha256 of a network's weights by name."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _key(context: RunContext, stage: StageSettings) -> str:
    """What determines how kdx builds a network that brings its weights."""
    return repr((network_spec(context, stage), _seed(context, stage), context.settings.deterministic))


def _seed(context: RunContext, stage: StageSettings) -> int:
    return derive_seed(context.settings.seed, stage.role, "init")


def _build(context: RunContext, stage: StageSettings) -> nn.Module:
    """The network with what it brings, or draws by the run's seed.

    On one thread: of some weights (orthogonal ones) the last bits depend on the number of threads.
    """
    with one_thread():
        setup_reproducibility(_seed(context, stage), context.settings.deterministic)
        return build_network(network_spec(context, stage), context.settings.download)


def _count_features(context: RunContext, stage: StageSettings, network: nn.Module) -> int:
    """How many features the network returns of an image; `KdxError` unless it returns (N, D)."""
    called, size = f"model.{stage.role}={stage.network}", context.input_size
    with users_code(f"{called} fails on {size[0]}x{size[1]} images"), eval_mode(network), torch.no_grad():
        features = network(torch.zeros(2, network_spec(context, stage).in_channels, *size))
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        raise KdxError(f"{called} with stage.{stage.role}.head=false returns {shape} for 2 images, not features (2, D)")
    return features.shape[1]


def _load(network: nn.Module, stage: StageSettings, path: Path) -> None:
    """All weights that the network has; what else the file holds, such as its classifier, is told and left."""
    own, called = network.state_dict(), f"model.{stage.role}={stage.network}"
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
