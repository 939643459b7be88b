"""What a network costs to use: weights, multiply-adds, latency, throughput, memory."""

import copy
import time
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kdx.models.networks import count_parameters

BATCHES = (1, 64)
SECONDS = 0.5  # of measuring for each batch size
LEAST_RUNS = 5


def measure_network(network: nn.Module, shape: tuple[int, int, int], device: torch.device) -> dict[str, Any]:
    """Costs of a network, of which a copy is used, in eval mode and float32 for images of `shape` (C, H, W).

    Multiply-adds are of one image, by torch's flop counter; latencies in ms are those of the fastest call, which other
    programs disturbed least; peak memory in MB is that of tensors for a batch of 64, weights included. On the CPU, and
    on `device` where that is another.
    """
    plain = copy.deepcopy(network).to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    with torch.inference_mode():
        costs: dict[str, Any] = {"parameters": count_parameters(plain), "multiply_adds": _multiply_adds(plain, shape)}
        costs |= {"cpu": _timings(plain, shape, torch.device("cpu"))}
        if device.type != "cpu":
            costs |= {device.type: _timings(plain.to(device), shape, device)}
    return costs


def _multiply_adds(network: nn.Module, shape: tuple[int, int, int]) -> int:
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def _timings(network: nn.Module, shape: tuple[int, int, int], device: torch.device) -> dict[str, float]:
    result: dict[str, float] = {}
    for count in BATCHES:
        images = torch.zeros(count, *shape, device=device)
        milliseconds = 1000 * _least_seconds(network, images)
        result |= {
            f"latency_ms_batch_{count}": milliseconds,
            f"images_per_s_batch_{count}": 1000 * count / milliseconds,
        }
    return result | {"peak_memory_mb": _peak_mb(network, images)}


def _least_seconds(network: nn.Module, images: Tensor) -> float:
    network(images)  # warms up
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or sum(seconds) < SECONDS:
        began = time.perf_counter()
        network(images)
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        elif images.device.type == "mps":
            torch.mps.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _peak_mb(network: nn.Module, images: Tensor) -> float:
    """Weights plus the largest sum of tensors alive in a forward pass."""
    held = sum(t.numel() * t.element_size() for t in (images, *network.parameters(), *network.buffers()))
    if images.device.type == "cuda":  # where other networks may be as well
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        network(images)
        return (held + torch.cuda.max_memory_allocated(images.device) - before) / 1e6
    counter = _LiveTensors()
    with counter:
        network(images)
    return (held + counter.peak) / 1e6


class _LiveTensors(TorchDispatchMode):
    """Sums the storage of tensors that operations make, until each is freed; `peak` in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.alive = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.alive += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return result

    def _freed(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.alive -= size
