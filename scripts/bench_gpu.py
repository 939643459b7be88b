"""Measure the student's step on a GPU: precision, memory format, compiling, memory, and the share of the card's peak.

    python scripts/bench_gpu.py                       # the step at 32 and 224 px, kdx against the bare loop
    python scripts/bench_gpu.py --cifar data          # also the whole CIFAR-10 chain; started again, it goes on
    python scripts/bench_gpu.py --device cpu --small  # only to see that the script works

Times are medians of device events after a warm-up. Writes bench_gpu.md and bench_gpu.json.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from bench import table
from measure import Case, Row, bare_loop, bare_step, interleave, kdx_epoch, rows_of
from torch.utils.flop_counter import FlopCounterMode

from kdx.losses.hinton import KnowledgeDistillationLoss

WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32 channels_last": {"channels_last": True},
    "bf16": {"half": torch.bfloat16},
    "bf16 channels_last": {"half": torch.bfloat16, "channels_last": True},
    "fp16 channels_last": {"half": torch.float16, "channels_last": True},
    "bf16 channels_last, compiled": {"half": torch.bfloat16, "channels_last": True, "compile_mode": "default"},
    "bf16 channels_last, reduce-overhead": {
        "half": torch.bfloat16,
        "channels_last": True,
        "compile_mode": "reduce-overhead",
    },
}
TARGET = 95.0


def median_seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    """Median time of a call, by events on a GPU; the first three warm up."""
    seconds = []
    for number in range(rounds + 3):
        if device == "cpu":
            began = time.perf_counter()
            work()
            taken = time.perf_counter() - began
        else:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            taken = start.elapsed_time(end) / 1000
        if number >= 3:
            seconds.append(taken)
    return statistics.median(seconds)


def peak_flops(device: str, size: int, rounds: int) -> float:
    """Measured FLOP/s of a bf16 matrix product: what the card reaches, not what its sheet says."""
    one, two = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: one @ two, device, rounds)


def step_flops(case: Case) -> int:
    """FLOPs of a step of one image: the teacher's pass, and forward and backward of the student."""
    plain = replace(case, device="cpu", half=None, channels_last=False, compile_mode=None)
    teacher, student, images = (
        plain.network(case.teacher).eval(),
        plain.network(case.student).train(),
        torch.zeros(2, 3, case.size, case.size),
    )
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            taught = teacher(images)
        KnowledgeDistillationLoss()(student(images), taught, torch.zeros(2, dtype=torch.long)).backward()
    return counter.get_total_flops() // 2


def steps(case: Case, name: str, peak: float, rounds: int, ways: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Every way of computing the step: images/s, times faster than fp32, share of the peak, memory."""
    flops, first, memory = step_flops(case), None, None
    for way, options in ways.items():
        own = replace(case, **options)
        work = bare_step(replace(own, images=own.batch_size))
        if case.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds = median_seconds(work, case.device, rounds)
        rate = case.batch_size / seconds
        used = torch.cuda.max_memory_allocated() / 2**20 if case.device != "cpu" else 0.0
        first, memory = first or rate, memory or used
        share = f"{100 * rate * flops / peak:.1f}% of the measured bf16 peak"
        note = f"{used:,.0f} MiB" + (f", {100 * (1 - used / memory):.0f}% less" if memory else "")
        yield Row(f"step, {name}", way, rate, "images/s", rate / first, share, note)
        del work
        if case.device != "cpu":
            torch.cuda.empty_cache()


def cifar(data_dir: Path, out: Path) -> Iterator[Row]:
    """Minutes of training of the whole CIFAR-10 chain, and until the student's validation accuracy reaches 95 %.

    Epochs' own times are summed: a chain that was cut off goes on when the script is started again.
    """
    folder = out / "cifar10"
    told = json.loads((folder / "summary.json").read_text()) if (folder / "summary.json").exists() else {}
    if told.get("status") != "finished":
        command = [sys.executable, "-m", "kdx.run", "epochs=60", "batch_size=256", "optimizer=sgd", "optimizer.lr=0.1"]
        command += ["optimizer.weight_decay=5e-4", f"data_dir={data_dir}", f"hydra.run.dir={folder}", "report=false"]
        subprocess.run([*command, f"output_dir={out}"], check=True)
        told = json.loads((folder / "summary.json").read_text())
    before = sum(told[role]["seconds"] for role in ("teacher", "assistant"))
    yield Row("CIFAR-10 chain", "all three stages", (before + told["student"]["seconds"]) / 60, "minutes")
    (log,) = (folder / "student" / "logs").glob("*_log.csv")
    with open(log) as file:
        rows = list(csv.DictReader(file))
    passed = 0.0
    for row in rows:
        passed += float(row["epoch_time_sec"])
        if float(row["val_accuracy"]) >= TARGET:
            yield Row("CIFAR-10 chain", f"until {TARGET:g} % on validation", (before + passed) / 60, "minutes")
            break
    test = told["student"]["test"]["accuracy"]
    yield Row("CIFAR-10 chain", "student, test accuracy", test, "%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny batches and images")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cifar", type=Path, metavar="DATA_DIR")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_gpu"))
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here")
    ways = {name: options for name, options in WAYS.items() if not (arguments.small and "compile_mode" in options)}
    torch.backends.cudnn.benchmark = True
    arguments.out.mkdir(parents=True, exist_ok=True)
    resnets = Case("resnet34", "resnet18", "small", batch_size=512, images=8192, device=arguments.device)
    large = replace(resnets, stem="imagenet", size=224, batch_size=128)
    if arguments.small:
        resnets, large = replace(resnets, batch_size=4, images=16), replace(large, batch_size=2, images=4)
    peak = peak_flops(arguments.device, 256 if arguments.small else 8192, arguments.rounds)
    rows = [Row("card", "bf16 matrix product", peak / 1e12, "TFLOP/s")]
    rows += steps(resnets, "ResNet-34 -> 18, 32 px, small stem", peak, arguments.rounds, ways)
    rows += steps(large, "ResNet-34 -> 18, 224 px", peak, arguments.rounds, ways)
    for way in ("fp32", "bf16 channels_last"):
        case = replace(resnets, **WAYS[way])
        seconds = interleave({"bare loop": bare_loop(case), "kdx": kdx_epoch(case)}, max(1, arguments.rounds // 4))
        rows += rows_of(f"loop, {way}", seconds, "bare loop", case.images)
    if arguments.cifar:
        rows += cifar(arguments.cifar, arguments.out)
    name = torch.cuda.get_device_name() if arguments.device != "cpu" else "CPU"
    text = f"{name}, torch {torch.__version__}; medians of {arguments.rounds}\n{table(rows)}"
    print(text)
    (arguments.out / "bench_gpu.md").write_text(text)
    told = {"device": name, "torch": str(torch.__version__), "rows": [asdict(row) for row in rows]}
    (arguments.out / "bench_gpu.json").write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
