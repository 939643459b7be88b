"""Activation checkpointing: a block's activations are computed again for the backward pass instead of being kept."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from kdx.errors import KdxError


def recompute_blocks(network: nn.Module) -> None:
    """Let every block of the network's sequential stages keep only its input for the backward pass (1604.06174).

    Memory for activations shrinks to about one block's; a step costs one forward pass more and gives the same bits.
    `KdxError` where the network has no `nn.Sequential` of blocks.
    """
    blocks = list(_blocks(network))
    if not blocks:
        raise KdxError(f"activation_checkpointing=true: {type(network).__name__} has no nn.Sequential of blocks")
    for block in blocks:
        contexts = partial(_contexts, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(block)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of sequences that are made of several layers themselves."""
    for child in module.children():
        layers = [layer for layer in child.children() if any(True for _ in layer.parameters())]
        if isinstance(module, nn.Sequential) and not isinstance(child, nn.Sequential) and layers:
            yield child
        else:
            yield from _blocks(child)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second forward pass must not count in the running statistics of batch-norm a second time."""
    kept = [(m, dict(m._buffers)) for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm, buffers in kept:
        norm._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers.update(buffers)
