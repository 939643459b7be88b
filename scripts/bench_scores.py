"""What scoring a split costs, with kdx.metrics and with torchmetrics' own count, in processes of their own."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measure import Row

SPLITS = ((5_000, 100), (45_000, 100), (2_000, 1_000))
MOST = 2**27  # entries of torchmetrics' (N, C^2) table: 1 GB; a larger one is not tried


def score_rows(rounds: int, in_own_process: Callable[..., float]) -> Iterator[Row]:
    """Seconds and megabytes that one scoring adds under deterministic algorithms; medians of the rounds."""
    for images, classes in SPLITS:
        ways = ["kdx, all scores"]
        if images * classes**2 <= MOST:
            ways.append("torchmetrics, confusion matrix alone")
        for way in ways:
            for unit in ("s", "MB"):
                cost = sorted(in_own_process(_cost, way == ways[0], images, classes, unit) for _ in range(rounds))
                yield Row(f"scores, {images:,} images of {classes:,} classes", way, cost[len(cost) // 2], unit)


def _cost(ours: bool, images: int, classes: int, unit: str) -> float:
    """Seconds, or the peak of memory above what was used before; everything is imported by then."""
    import torchmetrics.functional.classification as tmf

    from kdx.metrics.classification import full_scores
    from kdx.reproducibility import setup_reproducibility

    setup_reproducibility(0, deterministic=True)
    logits, labels = torch.randn(images, classes), torch.randint(0, classes, (images,))
    full_scores(logits[:8], labels[:8], "multi-class", classes)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before, began = _memory_mb("VmRSS"), time.perf_counter()
    if ours:
        full_scores(logits, labels, "multi-class", classes)
    else:
        tmf.multiclass_confusion_matrix(logits.argmax(dim=1), labels, classes)
    seconds = time.perf_counter() - began
    return seconds if unit == "s" else _memory_mb("VmHWM") - before


def _memory_mb(what: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, of Linux; ru_maxrss would be that of the process that started it."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{what}:")[1].split()[0]) / 1024
