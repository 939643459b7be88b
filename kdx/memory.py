"""GPU memory: what is in use, and giving back what is not."""

import gc

import torch

MIB = 2**20


def get_gpu_memory_usage() -> dict[str, float]:
    """MiB of the current CUDA device: allocated by tensors, reserved by torch, free and total on the card.

    Without CUDA everything is 0.
    """
    if not torch.cuda.is_available():
        return {"allocated_mb": 0.0, "reserved_mb": 0.0, "free_mb": 0.0, "total_mb": 0.0}
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated_mb": torch.cuda.memory_allocated() / MIB,
        "reserved_mb": torch.cuda.memory_reserved() / MIB,
        "free_mb": free / MIB,
        "total_mb": total / MIB,
    }


def full_cleanup() -> float:
    """Collect garbage and return torch's unused cache to the card; MiB that the card got back.

    Only what nothing refers to can be freed: drop networks and optimizers before the call.
    """
    before = get_gpu_memory_usage()["reserved_mb"]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return before - get_gpu_memory_usage()["reserved_mb"]


def start_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float:
    """Peak allocation in MiB since `start_peak`; 0 without CUDA."""
    return torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else 0.0
