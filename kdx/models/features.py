"""What a network says and what its layers see: logits with the features of named layers."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdx.errors import KdxError, suggest

STAGES, LAST_MAP, POOLED = "stages", "last_map", "pooled"
# Of what the first two stand for in what may be a transformer and does not say it as timm's do: raise it when that
# changes, and what was distilled by it is not reused. 2: the blocks of transformers, not the cut into patches.
FOUND_LAYERS_VERSION = 2
ALIASES = (STAGES, LAST_MAP, POOLED)

Layers = Mapping[str, Sequence[str]]  # the dotted names that each word stands for in one network


class Outputs(NamedTuple):
    """float32 logits (B, C) of a batch, and float32 features by the word that asked for them.

    A word stands for one layer or several: `features["stages"]` holds the last maps (B, C, H, W) of each resolution,
    `features["last_map"]` the last of them, `features["pooled"]` the input (B, D) of the classifier.
    """

    logits: Tensor
    features: Mapping[str, Sequence[Tensor]] = {}

    def gathered(self, gather: Callable[[Tensor], Tensor]) -> "Outputs":
        """The outputs for more images, of which these are some, by a function of rows (B, ...)."""
        features = {word: [gather(one) for one in layers] for word, layers in self.features.items()}
        return Outputs(gather(self.logits), features)


class Watched:
    """A network that returns its logits with the features of some layers.

    The hooks stay while the network is trained: torch.compile does not see hooks that are registered after it.
    """

    def __init__(self, network: nn.Module, layers: Layers | None = None) -> None:
        self.network, self.layers = network, dict(layers or {})
        self._seen: dict[tuple[str, str], Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        for word, names in self.layers.items():
            for name in names:
                self._watch(network.get_submodule(name), (word, name))

    def _watch(self, module: nn.Module, key: tuple[str, str]) -> None:
        if key[0] == POOLED and key[1]:  # else what the whole network returns
            hook = module.register_forward_pre_hook(lambda head, seen: self._seen.update({key: _pooled(head, seen[0])}))
        elif key[0] in (STAGES, LAST_MAP):
            as_map = map_of(self.network)
            hook = module.register_forward_hook(lambda _, inputs, output: self._seen.update({key: as_map(output)}))
        else:
            hook = module.register_forward_hook(lambda _, inputs, output: self._seen.update({key: output}))
        self._hooks.append(hook)

    def close(self) -> None:
        """Take the hooks off, where the network outlives its watching."""
        for hook in self._hooks:
            hook.remove()

    def __call__(self, images: Tensor) -> Outputs:
        """Outputs for images (B, C, H, W), in float32 at any precision of the forward pass."""
        logits = self.network(images).float()
        features = {
            word: tuple(self._seen[word, name].float() for name in names) for word, names in self.layers.items()
        }
        self._seen.clear()  # else the last batch's graph would stay in memory
        return Outputs(logits, features)


def resolve_layers(network: nn.Module, words: Sequence[str], images: Tensor) -> dict[str, tuple[str, ...]]:
    """The dotted names that words stand for in a network: `stages`, `last_map`, `pooled`, or a layer's own name.

    `images` (B, C, H, W) are passed through once, in eval mode. `KdxError` for a layer that is not there, that the
    network does not call, or whose output a later layer overwrites in place.
    """
    if not words:
        return {}
    calls, classes = _calls(network, images)
    names = dict(network.named_modules())
    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        if word in (STAGES, LAST_MAP):
            stages = _stages(network, calls)
            found[word] = stages if word == STAGES else stages[-1:]
        elif word == POOLED:
            found[word] = ("",) if getattr(network, "headless", False) else (classifier_of(network, classes)[0],)
        elif word not in names:
            choices = [*ALIASES, *(name for name in names if name)]
            raise KdxError(f"layer {word}: the network has no such layer{suggest(word, choices)}")
        elif word not in calls:
            raise KdxError(f"layer {word}: the network does not call it, or it returns no tensor")
        elif not calls[word].intact:
            raise KdxError(f"layer {word}: a later layer overwrites its output in place; choose the layer after it")
        else:
            found[word] = (word,)
    return found


def map_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """What makes a map (B, C, H, W) of a layer's output: of tokens (B, T, C), or of channels that come last.

    Tokens that stand for no place, such as the class token, are left out: a network's `num_prefix_tokens`.
    """
    prefix, last = getattr(network, "num_prefix_tokens", 0), getattr(network, "output_fmt", "") == "NHWC"

    def as_map(output: Tensor) -> Tensor:
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2) if last else output
        side = math.isqrt(output.shape[1] - prefix) if output.ndim == 3 else 0
        if not side or side * side != output.shape[1] - prefix:
            return output
        return output[:, prefix:].transpose(1, 2).unflatten(2, (side, side))

    return as_map


def classifier_of(network: nn.Module, classes: int | None = None) -> tuple[str, nn.Module]:
    """What the network says is its classifier, as timm's do; else the last linear layer, or the last convolution.

    Of linear layers one for so many `classes`, where that is known and there is one. Its name and itself.
    """
    ask: Any = getattr(network, "get_classifier", None)
    told = ask() if callable(ask) else None
    told = told[0] if isinstance(told, tuple) else told  # of a network with a second head, for distillation
    named = [name for name, module in network.named_modules() if module is told]
    if named and isinstance(told, nn.Linear | nn.Conv2d):
        return named[0], told
    heads = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    linear = [(n, m) for n, m in heads if isinstance(m, nn.Linear)]
    if not heads:
        raise KdxError(f"{type(network).__name__} has no linear classifier to train or replace")
    fitting = [(n, m) for n, m in linear if m.out_features == classes]
    return (fitting or linear or heads)[-1]


class _Call(NamedTuple):
    shape: torch.Size
    intact: bool  # nobody wrote into the output afterwards


def _calls(network: nn.Module, images: Tensor) -> tuple[dict[str, _Call], int]:
    """What every submodule returned in one pass in eval mode, in the order in which they ended; and how many classes.

    These are the logits of an image; of a network without a classifier its features.
    """
    outputs: dict[str, tuple[Tensor, int]] = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.pop(name, None)
            outputs[name] = (output, output._version)

    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: note(name, output))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with eval_mode(network), torch.no_grad():
            classes = network(images).shape[-1]
    finally:
        for handle in handles:
            handle.remove()
    calls = {name: _Call(output.shape, output._version == version) for name, (output, version) in outputs.items()}
    return calls, classes


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and every module back into the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _stages(network: nn.Module, calls: Mapping[str, _Call]) -> tuple[str, ...]:
    """The last block at each resolution, from fine to coarse; single layers where the network has no blocks.

    Of a network that lists its own, as timm's do in `feature_info`, those; of equal blocks, as a ViT's, four of them.
    """
    told = _told_stages(network, calls)
    if told:
        return told
    blocks = {name for name, module in network.named_modules() if any(True for _ in module.children())}
    last = _last_maps(network, calls, blocks)
    if len(last) > 1:
        return last
    tokens = _token_blocks(network, calls, blocks)
    if tokens:  # the only maps are those of the patches, before the first of them
        return _four_of(tokens)
    last = _last_maps(network, calls, calls.keys())
    if not last:
        raise KdxError(f"{type(network).__name__} has no layer that gives maps (B, C, H, W); name layers that it has")
    return last


def _last_maps(network: nn.Module, calls: Mapping[str, _Call], chosen: Collection[str]) -> tuple[str, ...]:
    """The last of the chosen layers at each resolution."""
    first, last = _first_side(network), dict[tuple[int, ...], str]()
    for name, call in calls.items():
        if name in chosen and len(call.shape) == 4 and call.intact and _has_weights(network, name):
            sides = tuple(call.shape[first : first + 2])
            if min(sides) > 1 or "." not in name:  # squeeze-and-excitation gives one pixel within a block
                last[sides] = name
    return tuple(last.values())


def _token_blocks(network: nn.Module, calls: Mapping[str, _Call], blocks: Collection[str]) -> list[str]:
    """The blocks of a list that give tokens (B, T, C), all as many; none where they are fewer than two."""
    lists = {name for name, module in network.named_modules() if isinstance(module, nn.Sequential | nn.ModuleList)}
    members = [name for name in calls if name in blocks and name.rpartition(".")[0] in lists]
    names = [name for name in members if len(calls[name].shape) == 3 and calls[name].intact]
    outer = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    equal = [name for name in outer if calls[name].shape == calls[outer[-1]].shape]
    return equal if len(equal) > 1 else []


def _four_of(names: Sequence[str]) -> tuple[str, ...]:
    """The last name of each quarter."""
    return tuple(dict.fromkeys(names[(len(names) * part + 3) // 4 - 1] for part in range(1, 5)))


def _first_side(network: nn.Module) -> int:
    """The dimension of a map's height: 1 where channels come last."""
    return 1 if getattr(network, "output_fmt", "") == "NHWC" else 2


def _told_stages(network: nn.Module, calls: Mapping[str, _Call]) -> tuple[str, ...]:
    """The layers that timm's `feature_info` names, where they give maps or tokens; the last at each resolution."""
    names = [str(info["module"]) for info in getattr(network, "feature_info", None) or () if "module" in info]
    names = [name for name in names if name in calls and calls[name].intact and _is_block(network, name)]
    if any(len(calls[name].shape) == 3 for name in names):
        return _four_of(names)
    first = _first_side(network)
    places = {name: tuple(calls[name].shape[first : first + 2]) for name in names}
    last = {size: name for name, size in places.items() if min(size, default=0) > 1}
    return tuple(last.values()) if len(last) > 1 else ()


def _is_block(network: nn.Module, name: str) -> bool:
    """Whether a layer is made of layers with weights: a stem's normalisation or activation is none."""
    return any(any(True for _ in child.parameters()) for child in network.get_submodule(name).children())


def _has_weights(network: nn.Module, name: str) -> bool:
    return any(True for _ in network.get_submodule(name).parameters())


def _pooled(classifier: nn.Module, features: Tensor) -> Tensor:
    """A classifier's input as one vector an image: the mean over tokens (B, T, D), or over a map's pixels."""
    if features.ndim == 2:
        return features
    return features.flatten(1, -2).mean(dim=1) if isinstance(classifier, nn.Linear) else features.flatten(2).mean(dim=2)
