"""Measure the student's step on a GPU: precision, memory format, compiling, memory, and the share of the card's peak.

    python scripts/bench_gpu.py                       # the step at 32 and 224 px, kdx against the bare loop
    python scripts/bench_gpu.py step --sizes 32       # some parts: step compiling loop ranks cifar
    python scripts/bench_gpu.py cifar --set data_dir=data         # the whole CIFAR-10 chain; started again, it goes on
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from bench import table
from measure import Case, Row, bare_loop, bare_step, interleave, kdx_epoch, rows_of, sync
from torch import distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from kdx.chain.team import connect
from kdx.losses.hinton import KnowledgeDistillationLoss
from kdx.training.distributed import Ranks

WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32 channels_last": {"channels_last": True},
    "bf16": {"half": torch.bfloat16},
    "bf16 channels_last": {"half": torch.bfloat16, "channels_last": True},
    "fp16 channels_last": {"half": torch.float16, "channels_last": True},
}
BF16: dict[str, Any] = WAYS["bf16 channels_last"]
PARTS = ("step", "compiling", "loop", "ranks", "cifar")
TARGET = 95.0
RECIPE = ("experiment=cifar10_small_stem", "epochs=32", "batch_size=512", "optimizer.lr=0.4", "compile=off")


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


def compiling(case: Case, modes: Sequence[str], rounds: int) -> Iterator[Row]:
    """What compiling teacher and student costs once and gains a step; ratio: times faster."""
    plain = median_seconds(bare_step(replace(case, **BF16)), case.device, rounds)
    for mode in modes:
        step, began = bare_step(replace(case, **BF16, compile_mode=mode)), time.perf_counter()
        for _ in range(3):
            step()
        sync(case.device)
        once = time.perf_counter() - began
        seconds = median_seconds(step, case.device, rounds)
        pays = f"pays after {once / (plain - seconds):,.0f} steps" if seconds < plain else "never pays"
        note = f"{once:.0f} s once, {pays}"
        yield Row(f"compiling, batch {case.batch_size}", mode, 1000 * seconds, "ms", plain / seconds, "", note)


def one_rank(case: Case, rounds: int) -> Iterator[Row]:
    """An epoch through torch's DistributedDataParallel on NCCL with this card alone, beside one without it."""
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    connect(Ranks(0, 1), store, torch.device("cuda", torch.cuda.current_device()))
    wrapped = kdx_epoch(case, wrap=Ranks(0, 2).wrap)  # as on two
    seconds = interleave({"devices=1": kdx_epoch(case), "the same through DDP": wrapped}, rounds)
    yield from rows_of(f"one rank, batch {case.batch_size}", seconds, "devices=1", case.images)
    dist.destroy_process_group()


def cifar(overrides: Sequence[str], out: Path) -> Iterator[Row]:
    """Minutes of training of each stage of the CIFAR-10 chain, and until its validation accuracy reaches 95 %.

    Epochs' own times are summed: a chain that was cut off goes on when the script is started again.
    """
    folder = out / "cifar10"
    told = json.loads((folder / "summary.json").read_text()) if (folder / "summary.json").exists() else {}
    if told.get("status") != "finished":
        command = [sys.executable, "-m", "kdx.run", *RECIPE, *overrides, f"hydra.run.dir={folder}", f"output_dir={out}"]
        subprocess.run(command, check=True)
        told = json.loads((folder / "summary.json").read_text())
    for role in ("teacher", "assistant", "student"):
        (log,) = (folder / role / "logs").glob("*_log.csv")
        with open(log) as file:
            rows = list(csv.DictReader(file))
        passed, when = 0.0, f"never {TARGET:g} % on validation"
        for row in rows:
            passed += float(row["epoch_time_sec"])
            if float(row["val_accuracy"]) >= TARGET:
                when = f"{TARGET:g} % on validation after {passed / 60:.2f} minutes, epoch {row['epoch']}"
                break
        scores = f"test {told[role]['test']['accuracy']:.2f} %"
        yield Row("CIFAR-10 chain", role, told[role]["seconds"] / 60, "minutes", None, scores, when)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all but cifar")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny batches and images")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", choices=[32, 224], default=[32, 224])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for cifar, such as data_dir=data")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_gpu"))
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here")
    torch.backends.cudnn.benchmark = True
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if arguments.device != "cpu" else "CPU"
    rows = []
    for row in measured(arguments):
        rows.append(row)
        print(f"{row.part}: {row.name}: {row.value:,.2f} {row.unit} {row.note}", file=sys.stderr, flush=True)
    text = f"{name}, torch {torch.__version__}; medians of {arguments.rounds}\n{table(rows)}"
    print(text)
    (arguments.out / "bench_gpu.md").write_text(text)
    told = {"device": name, "torch": str(torch.__version__), "rows": [asdict(row) for row in rows]}
    (arguments.out / "bench_gpu.json").write_text(json.dumps(told, indent=2) + "\n")


def measured(arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of all parts that are asked for."""
    parts, rounds, device = arguments.parts or PARTS[:-1], arguments.rounds, arguments.device
    small = Case("resnet34", "resnet18", "small", batch_size=512, images=8192, device=device)
    large = replace(small, stem="imagenet", size=224, batch_size=128)
    if arguments.small:
        small, large = replace(small, batch_size=4, images=16), replace(large, batch_size=2, images=4)
    if "step" in parts:
        peak = peak_flops(device, 256 if arguments.small else 8192, rounds)
        yield Row("card", "bf16 matrix product", peak / 1e12, "TFLOP/s")
        for size, case in ((32, small), (224, large)):
            if size in arguments.sizes:
                yield from steps(case, f"ResNet-34 -> 18, {size} px", peak, rounds, WAYS)
    if "loop" in parts:
        steps_an_epoch = 4 if arguments.small else 88  # of CIFAR-10
        for way in ("fp32", "bf16 channels_last"):
            case = replace(small, **WAYS[way], images=steps_an_epoch * small.batch_size)
            seconds = interleave({"bare loop": bare_loop(case), "kdx": kdx_epoch(case)}, max(1, rounds // 2))
            yield from rows_of(f"loop, {way}", seconds, "bare loop", case.images)
    if "ranks" in parts and device != "cpu":
        yield from one_rank(replace(small, **BF16), max(1, rounds // 2))
    if "compiling" in parts and not arguments.small:
        yield from compiling(small, ["default"], rounds)
        yield from compiling(replace(small, batch_size=128), ["default", "reduce-overhead"], rounds)
    if "cifar" in parts:
        yield from cifar(arguments.set, arguments.out)


if __name__ == "__main__":
    main()
