"""How networks are computed: half precision and the scaler that fp16 needs, memory format, compiling."""

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdx.errors import KdxError

# steps. On an H200 compiling a ResNet-18 took 31 s, the time of 2,300 whole steps of it under a ResNet-34 (batch 512)
COMPILE_PAYS_AFTER = 20_000


@dataclass(frozen=True)
class Precision:
    """`half` is torch.bfloat16, torch.float16 or None for float32 throughout; `channels_last` stores images NHWC.

    `cuda_graphs` says that steps may be replayed from CUDA graphs.
    """

    device: torch.device
    half: torch.dtype | None
    channels_last: bool = False
    cuda_graphs: bool = False

    @property
    def name(self) -> str:
        return {torch.bfloat16: "bf16", torch.float16: "fp16", None: "off"}[self.half]

    def autocast(self) -> torch.autocast:
        """The context for forward passes; does nothing where the precision is off."""
        return torch.autocast(self.device.type, dtype=self.half or torch.bfloat16, enabled=self.half is not None)

    def no_gradient(self) -> torch.inference_mode | torch.no_grad:
        """The context for what is not trained. No graph may be captured in inference mode: the training graphs that
        follow it would fail (PyTorch issue 135892).
        """
        return torch.no_grad() if self.cuda_graphs else torch.inference_mode()

    def place(self, network: nn.Module) -> nn.Module:
        """The network on the device, its convolutions in the memory format that is fast there."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return network.to(self.device, memory_format=layout)  # type: ignore[call-overload]

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps small fp16 gradients from vanishing (1710.03740); does nothing for the other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)


def choose_precision(
    amp: str, device: torch.device, channels_last: bool | None = None, compile_mode: str = "off"
) -> Precision:
    """`auto` is bf16 where the device computes it natively, else fp16 on CUDA, else off.

    `channels_last=None` uses it on the CPU (1.05 to 1.3 times faster in float32) and with half precision on CUDA.
    """
    if amp == "auto":
        amp = "bf16" if _fast_at_bf16(device) else "fp16" if device.type == "cuda" else "off"
    half = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]
    if channels_last is None:
        channels_last = device.type == "cpu" or (device.type == "cuda" and half is not None)
    return Precision(device, half, channels_last, cuda_graphs=compile_mode == "reduce-overhead")


def choose_compile(requested: str, device: torch.device, steps: int) -> str | None:
    """The mode for `torch.compile`, or None to leave it out.

    `auto` compiles on CUDA where a compiler is there and the steps are many enough to pay for it; on CPU it gained
    nothing by itself.
    """
    if requested == "auto":
        pays = device.type == "cuda" and steps >= COMPILE_PAYS_AFTER and _can_compile()
        requested = "default" if pays else "off"
    return None if requested == "off" else requested


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA, then MPS, then the CPU; a device that is not there raises `KdxError`."""
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise KdxError(f"device={name}: choose auto, cpu, cuda, cuda:<number> or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": has_mps}.get(device.type, False)
    if there and device.type == "cuda" and device.index is not None:
        there = device.index < torch.cuda.device_count()
    if not there:
        raise KdxError(f"device={name}: not available here (CUDA devices: {torch.cuda.device_count()}, MPS: {has_mps})")
    return device


def device_of_rank(name: str, devices: int | Sequence[int], rank: int, alone: bool = True) -> torch.device:
    """The device of one of several ranks: processes on the CPU, cards by their numbers or the first ones.

    `alone`: a single rank has no others on other machines.
    """
    device = choose_device(name)
    if devices == 1 and alone:
        return device
    if device.type == "cpu" and isinstance(devices, int):
        return device
    if device.type != "cuda":
        raise KdxError(f"devices={devices}: several of {device.type} have no numbers; choose 1, or cuda")
    if device.index is not None:
        raise KdxError(f"device={name}: one card, and devices={devices}; choose device=cuda, and its number in devices")
    numbers = range(devices) if isinstance(devices, int) else devices
    there = torch.cuda.device_count()
    if max(numbers) >= there:
        raise KdxError(f"devices={devices}: {there} CUDA device{'s are' if there > 1 else ' is'} visible here")
    return torch.device("cuda", numbers[rank])


def compile_networks(networks: Sequence[nn.Module], mode: str) -> None:
    """torch.compile in place, so that the names of weights stay.

    All ResNets share the code of one `forward`: what earlier stages compiled is forgotten first, and there is room for
    every network in both modes and for two batch sizes, without which torch would silently leave the rest uncompiled.
    """
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(networks))
    for network in networks:
        network.compile(mode=mode)


@contextmanager
def compiled(networks: Sequence[nn.Module], mode: str) -> Iterator[None]:
    """Networks that are compiled within; afterwards they compute as written, and nothing of it stays in memory."""
    try:
        compile_networks(networks, mode)
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None  # as torch's own copies of a module leave it out
        torch._dynamo.reset()


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay the moments out in memory as their weights are: fused kernels go through both by address.

    They differ where a state was saved under another `channels_last`.
    """
    for weight, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, Tensor) and moment.shape == weight.shape and moment.stride() != weight.stride():
                moments[name] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)


def _can_compile() -> bool:
    """Whether torch.compile finds triton and a C compiler, which it needs on CUDA."""
    compilers = (os.environ.get("CC", "cc"), "gcc")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


def _fast_at_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()  # every processor with AMX has it too
    return False
