"""Automatic mixed precision: which half precision a device is fast at, and the scaler that fp16 needs."""

from dataclasses import dataclass

import torch

from kdx.errors import KdxError

CHOICES = ("auto", "bf16", "fp16", "off")


@dataclass(frozen=True)
class Precision:
    """`half` is torch.bfloat16, torch.float16 or None for float32 throughout."""

    device: torch.device
    half: torch.dtype | None

    @property
    def name(self) -> str:
        return {torch.bfloat16: "bf16", torch.float16: "fp16", None: "off"}[self.half]

    def autocast(self) -> torch.autocast:
        """The context for forward passes; does nothing where the precision is off."""
        return torch.autocast(self.device.type, dtype=self.half or torch.bfloat16, enabled=self.half is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps small fp16 gradients from vanishing (1710.03740); does nothing for the other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)


def choose_precision(amp: str, device: torch.device) -> Precision:
    """`auto` is bf16 where the device computes it natively, else fp16 on CUDA, else off."""
    if amp == "auto":
        amp = "bf16" if _fast_at_bf16(device) else "fp16" if device.type == "cuda" else "off"
    return Precision(device, {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp])


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


def _fast_at_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()  # every processor with AMX has it too
    return False
