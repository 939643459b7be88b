"""Networks by name: stem, classifier, ImageNet weights, frozen backbone, feature hooks."""

import importlib
import inspect
import urllib.error
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from kdx.errors import KdxError, suggest
from kdx.files import hash_file
from kdx.models.batch_norm import set_momentum
from kdx.models.features import classifier_of
from kdx.models.stem import FINER, SMALL, SMALL_UP_TO, has_resnet_stem, use_finer_strides, use_resnet_stem
from kdx.models.timm_networks import PREFIX, timm_network, timm_weights
from kdx.users_code import users_code

USUAL_SIZES = (32, 64, 96, 128, 224, 299)  # px, of which one is proposed where a network cannot take the images


@dataclass(frozen=True)
class NetworkSpec:
    """What determines a network before training."""

    name: str
    num_classes: int
    in_channels: int = 3
    pretrained: bool = False
    freeze_backbone: bool = False
    stem: str = "imagenet"
    norm_momentum: float | None = None  # of batch-norm; None: as the network defines it
    image_size: tuple[int, int] | None = None  # height and width, for networks that are built for one size
    head: bool = True  # False: without a classifier, it returns features (N, D)


def get_resnet_model(model_name: str, num_classes: int, pretrained: bool = False) -> nn.Module:
    """A torchvision network for RGB images with its ImageNet stem and a classifier of `num_classes`."""
    return build_network(NetworkSpec(model_name, num_classes, pretrained=pretrained))


def build_network(spec: NetworkSpec, download: bool = True) -> nn.Module:
    """The network of `spec`, its weights drawn from torch's global generator or loaded from ImageNet's.

    Raises `KdxError` for an unknown name, a stem that the network cannot have, or weights that are missing.
    """
    if not spec.head:
        return _headless(spec, download)
    own_channels = ":" in spec.name or spec.name.startswith(PREFIX)  # built for the images' channels
    if ":" in spec.name:
        network = _call_user_network(spec)
    elif spec.name.startswith(PREFIX):
        network = timm_network(
            spec.name, spec.num_classes, spec.in_channels, spec.image_size, spec.pretrained, download
        )
    else:
        network = _torchvision_network(spec, download)
    if spec.norm_momentum is not None:
        set_momentum(network, spec.norm_momentum)
    if spec.stem == SMALL and has_resnet_stem(spec.name):
        use_resnet_stem(network)
    elif spec.stem in (SMALL, FINER):
        channels = spec.in_channels if own_channels else 3
        use_finer_strides(network, spec.name, channels, max(spec.image_size or (SMALL_UP_TO,)))
    if spec.in_channels != 3 and not own_channels:
        _use_channels(network, spec.in_channels)
    if spec.freeze_backbone:
        freeze_all_but_classifier(network, spec.num_classes)
    return network


def check_network(
    network: nn.Module,
    spec: NetworkSpec,
    size: tuple[int, int],
    batch_size: int = 2,
    called: str | None = None,
    trained: bool = True,
) -> None:
    """Pass blank images through the network, in eval mode and, where it is to be `trained`, in training mode.

    `KdxError`, which calls the network `called`, where it fails or does not return (N, num_classes). Training mode
    changes batch-norm statistics: for a network that is thrown away.
    """
    called, device = called or f"network '{spec.name}'", device_of(network)
    for training, count in ((False, 2), (True, min(2, batch_size)))[: 1 + trained]:
        network.train(training)
        try:
            with users_code(f"{called} fails on {size[0]}x{size[1]} images"), torch.no_grad():
                logits = network(torch.zeros(count, spec.in_channels, *size, device=device))
        except KdxError as error:
            hint = "; raise batch_size" if training and count == 1 else _resize_hint(network, spec)
            raise KdxError(f"{error}{hint}") from error
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (count, spec.num_classes):
            raise KdxError(f"{called} returns {shape} for {count} images, not ({count}, {spec.num_classes})")


def _resize_hint(network: nn.Module, spec: NetworkSpec) -> str:
    """What to set where a network does not take images of some size: the first usual size that it takes, if any."""
    network.eval()
    for size in USUAL_SIZES:
        with suppress(KdxError), users_code(spec.name), torch.no_grad():
            network(torch.zeros(1, spec.in_channels, size, size, device=device_of(network)))
            return f"; set dataset.resize={size}"
    return ""


def device_of(network: nn.Module) -> torch.device:
    """Where the network's first weight lies; the CPU for one without weights."""
    return next((weight.device for weight in network.parameters()), torch.device("cpu"))


def count_parameters(network: nn.Module) -> int:
    """The number of weights, trained or frozen."""
    return sum(parameter.numel() for parameter in network.parameters())


def set_training_mode(network: nn.Module) -> None:
    """`train()`, but layers whose weights are all frozen stay in eval mode, so that batch-norm keeps its statistics."""
    network.train()
    for module in network.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def freeze_all_but_classifier(network: nn.Module, classes: int | None = None) -> None:
    """Leave gradients to the last linear (or convolutional) classifier only, the one for so many classes."""
    network.requires_grad_(False)
    classifier_of(network, classes)[1].requires_grad_(True)


@contextmanager
def capture_features(network: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Collect what `layer` (a dotted name) returns at every forward pass; the hook is always removed."""
    layers = {name: module for name, module in network.named_modules() if name}
    if layer not in layers:
        near = suggest(layer, layers) or f"; choose {', '.join(name for name, _ in network.named_children())}"
        raise KdxError(f"layer={layer}: the network has no such layer{near}")
    features: list[Tensor] = []
    handle = layers[layer].register_forward_hook(lambda module, inputs, output: features.append(output.detach()))
    try:
        yield features
    finally:
        handle.remove()


def _headless(spec: NetworkSpec, download: bool) -> nn.Module:
    """The network without its classifier: of timm and of a user's own, called with num_classes=0, its own way."""
    asked = (":" in spec.name and not spec.name.startswith("kdx.")) or spec.name.startswith(PREFIX)
    with warnings.catch_warnings():  # torch's, of a classifier for no classes, which is what is asked for
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors is a no-op")
        network = build_network(replace(spec, head=True, num_classes=0 if asked else spec.num_classes), download)
    name, head = classifier_of(network)
    if not asked or getattr(head, "out_features", None) == 0:
        network.set_submodule(name, nn.Identity())
    network.headless = True  # type: ignore[assignment]  # whoever looks for pooled features takes what it returns
    return network


def _call_user_network(spec: NetworkSpec) -> nn.Module:
    if spec.pretrained:
        raise KdxError(
            f"model '{spec.name}' with pretrained=true: ImageNet weights exist for torchvision's and timm's networks"
        )
    module_name, _, attribute = spec.name.partition(":")
    with users_code(f"model '{spec.name}': package.module:callable cannot be imported"):
        build = getattr(importlib.import_module(module_name), attribute)
    with users_code(f"model '{spec.name}': cannot be called with num_classes and in_channels"):
        sized = {"image_size": spec.image_size} if "image_size" in inspect.signature(build).parameters else {}
        network = build(num_classes=spec.num_classes, in_channels=spec.in_channels, **sized)
    if not isinstance(network, nn.Module):
        raise KdxError(f"model '{spec.name}' returned {type(network).__name__}, not a torch.nn.Module")
    return network


def _torchvision_network(spec: NetworkSpec, download: bool) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if spec.name not in names:
        raise KdxError(
            f"model '{spec.name}': not a torchvision classifier such as resnet18, resnet34, resnet50, "
            f"nor timm/<name>, nor package.module:callable{suggest(spec.name, names)}"
        )
    extra = {"aux_logits": False, "init_weights": True} if spec.name in ("googlenet", "inception_v3") else {}
    if not spec.pretrained:
        made = torchvision.models.get_model(spec.name, weights=None, num_classes=spec.num_classes, **extra)
        return _with_layout(made)
    if extra:
        raise KdxError(f"model '{spec.name}' with pretrained=true: its ImageNet weights need auxiliary classifiers")
    state = torch.load(_imagenet_file(spec.name, download), map_location="cpu", weights_only=True)
    network = torchvision.models.get_model(spec.name, weights=None)
    network.load_state_dict(state)
    _replace_classifier(network, spec.num_classes)
    return _with_layout(network)


def may_be_transformer(name: str) -> bool:
    """Whether kdx itself must find out which of its layers give maps: torchvision's transformers, a user's network."""
    return name.startswith(("vit_", "swin_")) or (":" in name and not name.startswith("kdx."))


def _with_layout(network: nn.Module) -> nn.Module:
    """A torchvision network that says, in timm's words, how its layers' outputs are maps."""
    if isinstance(network, torchvision.models.VisionTransformer):
        network.num_prefix_tokens = 1  # the class token
    elif isinstance(network, torchvision.models.SwinTransformer):
        network.output_fmt = "NHWC"
    return network


def pretrained_file(name: str, download: bool) -> Path:
    """The weights that a network of torchvision or timm begins with where it is `pretrained`; `KdxError` without."""
    return timm_weights(name, download) if name.startswith(PREFIX) else _imagenet_file(name, download)


def _imagenet_file(name: str, download: bool) -> Path:
    """torchvision's default weights in torch's hub folder, their hash checked."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    file_name = url.rsplit("/", 1)[1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    by_hand = f"download {url} by hand and put it into the folder checkpoints of torch's hub ($TORCH_HOME/hub)"
    if not path.exists():
        if not download:
            raise KdxError(f"model '{name}': pretrained=true needs {file_name} and download=false: {by_hand}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_in(file_name))
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise KdxError(f"model '{name}': its ImageNet weights cannot be fetched ({error}): {by_hand}") from error
    if not hash_file(path).startswith(_hash_in(file_name)):
        raise KdxError(f"model '{name}': {file_name} in torch's hub folder is damaged (sha256 differs): delete it")
    return path


def _hash_in(file_name: str) -> str:
    return Path(file_name).stem.rsplit("-", 1)[1]


def _replace_classifier(network: nn.Module, num_classes: int) -> None:
    name, old = classifier_of(network)
    if isinstance(old, nn.Linear):
        network.set_submodule(name, nn.Linear(old.in_features, num_classes))
    else:
        assert isinstance(old, nn.Conv2d)
        network.set_submodule(name, nn.Conv2d(old.in_channels, num_classes, kernel_size=1))


def _use_channels(network: nn.Module, channels: int) -> None:
    """Let the first convolution take `channels` instead of RGB."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            fresh = nn.Conv2d(
                channels,
                layer.out_channels,
                layer.kernel_size,  # type: ignore[arg-type]
                stride=layer.stride,  # type: ignore[arg-type]
                padding=layer.padding,  # type: ignore[arg-type]
                bias=layer.bias is not None,
            )
            nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
            network.set_submodule(name, fresh)
            return
    warnings.warn(f"{type(network).__name__} has no convolution to adapt to {channels} channels", stacklevel=2)
