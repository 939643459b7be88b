"""Memory: what is in use on the GPU, giving back what is not, and what the CPU's steps may keep."""

import ctypes
import gc
import platform

import torch

MIB = 2**20
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


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
    """Collect garbage, return unused memory to the card and to the system; MiB that the card got back.

    Only what nothing refers to can be freed: drop networks and optimizers before the call.
    """
    before = get_gpu_memory_usage()["reserved_mb"]
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return before - get_gpu_memory_usage()["reserved_mb"]


def keep_freed_memory() -> None:
    """Let the process keep freed memory until `full_cleanup`: the next step on a CPU asks for it again.

    glibc returns large blocks to the system as they are freed, and the next step gets them back page by page: more
    than 100,000 page faults a step of ResNet-18 in float32. Costs up to 15 % of memory. Nothing but glibc needs it.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)


def start_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float:
    """Peak allocation in MiB since `start_peak`; 0 without CUDA."""
    return torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else 0.0
