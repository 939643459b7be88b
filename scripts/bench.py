"""Measure kdx beside the bare loop, other frameworks, other pipelines and naive sweeps, interleaved in one run.

    python scripts/bench.py                 # everything, hours on two CPU cores: a round of `sweep` takes 40 minutes
    python scripts/bench.py loop memory     # some parts; --rounds 5, --out FOLDER

Needs the extra `bench` for the part `frameworks`. Writes bench.md, bench.json and bench.png. For a GPU: bench_gpu.py.
"""

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Case, Row, bare_loop, interleave, kdx_epoch, kdx_trainer, rows_of, step_about
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from kdx.chain.team import connect
from kdx.cli import SPINS
from kdx.data.batches import Batches
from kdx.memory import keep_freed_memory
from kdx.training.distributed import Ranks
from kdx.training.evaluation import logits_of

RESNETS = Case("resnet34", "resnet18", "small", images=256, batch_size=64)
THIN = Case()
TOGETHER = replace(THIN, images=1024)
MEMORY = {  # what an epoch needs at most: of the ViT trio the teacher's, the largest of its three networks
    "ResNet-34 -> 18, batch 64, 32 px": replace(RESNETS, images=128),
    "ViT-S alone, batch 32, 64 px": Case(None, "kdx.vit:small", images=64, batch_size=32, size=64),
}


def loop(rounds: int) -> Iterator[Row]:
    """(a) An epoch of kdx against the bare loop."""
    for name, case in (("thin ResNet-20 -> 8", THIN), ("ResNet-34 -> 18", RESNETS)):
        yield from rows_of(f"loop, {name}, fp32", step_about(case, rounds), "bare loop", case.images)


def levers(rounds: int) -> Iterator[Row]:
    """Each lever by itself and together, as kdx epochs; ratio: times faster than kdx in fp32."""
    bf16 = {"half": torch.bfloat16}
    for name, case in (("thin ResNet-20 -> 8", THIN), ("ResNet-34 -> 18", RESNETS)):
        cases = {
            "fp32": case,
            "fp32, optimizer not fused": replace(case, fused=False),
            "fp32 channels_last": replace(case, channels_last=True),
            "bf16": replace(case, **bf16),
            "bf16 channels_last (amp=auto here)": replace(case, **bf16, channels_last=True),
            "fp32, logits cached": replace(case, cached=True),
            "bf16 channels_last, logits cached": replace(case, **bf16, channels_last=True, cached=True),
            "bf16 channels_last, compiled": replace(case, **bf16, channels_last=True, compile_mode="default"),
        }
        seconds = interleave({name: kdx_epoch(case) for name, case in cases.items()}, rounds)
        yield from rows_of(f"levers, {name}", seconds, "fp32", case.images, slower_is_above_one=False)


def freed(rounds: int) -> Iterator[Row]:
    """Freed memory kept against given back, in processes of their own; ratio: times faster."""
    half = {"half": torch.bfloat16, "channels_last": True}
    for name, case in (("thin ResNet-20 -> 8", THIN), ("ResNet-34 -> 18", RESNETS)):
        for precision, own in (("fp32", case), ("bf16 channels_last", replace(case, **half))):
            ways = {"given back": False, "kept: kdx": True}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, keep in ways.items():
                    seconds[way].append(_in_own_process(_seconds_of_an_epoch, own, keep))
            what = f"freed memory, {name}, {precision}"
            yield from rows_of(what, seconds, "given back", case.images, slower_is_above_one=False)


def _in_own_process(work: Callable[..., Any], *arguments: object) -> Any:
    """Figures that what was measured before has no part in."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _seconds_of_an_epoch(case: Case, keep: bool) -> float:
    if keep:
        keep_freed_memory()
    (seconds,) = interleave({"kdx": kdx_epoch(case)}, 1)["kdx"]
    return seconds


def together(rounds: int) -> Iterator[Row]:
    """Two trainings at once by hand, in processes of their own, with libgomp's waiting and with kdx's."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for waiting, spins in (("libgomp's waiting", None), ("short waiting: kdx", str(SPINS))):
            for count, name in ((1, "one alone"), (2, "two at once")):
                seconds.setdefault(f"{name}, {waiting}", []).append(_seconds_of_each(count, spins))
    yield from rows_of("two trainings at once, thin, fp32", seconds, list(seconds)[0], TOGETHER.images)


def _seconds_of_each(count: int, spins: str | None) -> float:
    """Mean seconds of an epoch of each of `count` processes that begin it together."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    os.environ.pop("GOMP_SPINCOUNT", None)
    if spins is not None:
        os.environ["GOMP_SPINCOUNT"] = spins  # read by libgomp when the process imports torch
    processes = [context.Process(target=_epoch_with_others, args=(barrier, results)) for _ in range(count)]
    for process in processes:
        process.start()
    taken = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(taken) / count


def _epoch_with_others(barrier: Any, results: Any) -> None:
    keep_freed_memory()
    epoch = kdx_epoch(TOGETHER)
    epoch()
    barrier.wait()
    began = time.perf_counter()
    epoch()
    results.put(time.perf_counter() - began)


def devices(rounds: int) -> Iterator[Row]:
    """One training on two ranks of one thread each against one rank of two threads, batch-norm over both or not."""
    ways = {"1 rank, 2 threads": (1, True), "2 ranks, 1 thread each": (2, True), "2 ranks, own batch-norm": (2, False)}
    for name, case in (("thin ResNet-20 -> 8", THIN), ("ResNet-34 -> 18", RESNETS)):
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (world, synchronised) in ways.items():
                seconds[way].append(_seconds_on_ranks(case, world, synchronised))
        yield from rows_of(f"devices, {name}, fp32", seconds, "1 rank, 2 threads", case.images)


def _seconds_on_ranks(case: Case, world: int, synchronised: bool) -> float:
    """Seconds of an epoch, after one that warms up, on `world` ranks that share two threads."""
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)  # as kdx does for its runs
    context = multiprocessing.get_context("spawn")
    results, store = context.Queue(), dist.TCPStore("127.0.0.1", 0, is_master=True)
    ranks = [Ranks(rank, world, synchronised) for rank in range(world)]
    processes = [context.Process(target=_epoch_on_rank, args=(case, one, store.port, results)) for one in ranks]
    for process in processes:
        process.start()
    taken = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return max(taken)


def _epoch_on_rank(case: Case, ranks: Ranks, port: int, results: Any) -> None:
    keep_freed_memory()
    torch.set_num_threads(2 // ranks.world)
    connect(ranks, dist.TCPStore("127.0.0.1", port), torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        trainer, keeper = kdx_trainer(case, Path(folder))
        ranks.prepare(trainer.learner)
        trainer.ranks, trainer.model = ranks, ranks.wrap(trainer.learner)
        for _ in range(2):
            began = time.perf_counter()
            trainer._train_epoch(keeper)
            taken = time.perf_counter() - began
            trainer.progress.close_epoch({}, None)
    results.put(taken)
    dist.destroy_process_group()


def validation(rounds: int) -> Iterator[Row]:
    """What validation costs: batches twice as large as in training, in inference mode; ratio: times faster."""
    for name, case in (("thin ResNet-8", THIN), ("ResNet-18", RESNETS)):
        network, precision = case.network(case.student), case.precision()
        single = case.batches(shuffle=False, augment=())
        double = replace(case, batch_size=2 * case.batch_size).batches(shuffle=False, augment=())

        def without_gradient(network: nn.Module = network, batches: Batches = single) -> None:
            with torch.no_grad():
                for batch in batches.epoch(0):
                    network.eval()(batch.images)

        contestants = {
            "no_grad, batches as in training": without_gradient,
            "inference mode": partial(logits_of, network, single, precision),
            "inference mode, batches twice as large: kdx": partial(logits_of, network, double, precision),
        }
        seconds = interleave(contestants, rounds)
        yield from rows_of(f"validation, {name}", seconds, list(seconds)[0], case.images, slower_is_above_one=False)


def frameworks(rounds: int) -> Iterator[Row]:
    """(b) The same epoch in other frameworks, with torchvision's per-image crop and flip."""
    from bench_frameworks import lightning_epoch, torchdistill_epoch

    for name, case in (("thin ResNet-20 -> 8", THIN), ("ResNet-34 -> 18", RESNETS)):
        contestants = {"kdx": kdx_epoch(case), "Lightning": lightning_epoch(case)}
        seconds = interleave({**contestants, "torchdistill": torchdistill_epoch(case)}, rounds)
        yield from rows_of(f"frameworks, {name}, fp32", seconds, "kdx", case.images)


def pipelines(rounds: int) -> Iterator[Row]:
    """(c) Images/s of data pipelines alone: crop and flip at 32 px, and JPEG files at 224 px."""
    from bench_frameworks import Pictures
    from bench_pictures import picture_rows
    from PIL import Image
    from torchvision.transforms import v2

    case = replace(THIN, images=8192)
    ours, epochs = case.batches(), iter(range(10**6))
    per_image = DataLoader(Pictures(case), case.batch_size, shuffle=True, num_workers=2)
    large = Pictures(replace(case, images=1024))
    steps = [v2.Resize(256), v2.RandomCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    large.transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
    large.images = [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0))) for image in large.images]
    pil = DataLoader(large, case.batch_size, shuffle=True, num_workers=2)

    def through(batches: object) -> None:
        for _ in batches:  # type: ignore[attr-defined]
            pass

    contestants = {
        "kdx: batched, in memory": lambda: through(ours.epoch(next(epochs))),
        "torchvision v2 per image, 2 workers": lambda: through(per_image),
        "PIL 32 -> 256 -> 224 per image, 2 workers (1,024 images)": lambda: through(pil),
    }
    seconds = interleave(contestants, rounds)
    seconds[list(seconds)[2]] = [time * case.images / 1024 for time in seconds[list(seconds)[2]]]
    yield from rows_of("pipelines", seconds, list(seconds)[0], case.images)
    yield from picture_rows(_in_own_process)


def scaling(rounds: int) -> Iterator[Row]:
    """(e) Seconds of a kdx epoch as images, classes and the batch grow; ratio to the first of each."""
    growing = {
        "images": [replace(THIN, images=count) for count in (512, 1024, 2048, 4096)],
        "classes": [replace(THIN, images=1024, classes=count) for count in (10, 100, 1000)],
        "batch_size": [replace(THIN, images=1024, batch_size=count) for count in (16, 64, 256)],
    }
    for what, cases in growing.items():
        names = [f"{what}={getattr(case, what)}" for case in cases]
        seconds = interleave({name: kdx_epoch(case) for name, case in zip(names, cases, strict=True)}, rounds)
        for name, times in seconds.items():
            ratios = sorted(time / base for time, base in zip(times, seconds[names[0]], strict=True))
            middle, spread = sorted(times)[len(times) // 2], f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            yield Row("scaling, thin ResNet-20 -> 8", name, middle, "s", ratios[len(ratios) // 2], spread)


def memory(rounds: int) -> Iterator[Row]:
    """(f) How much an epoch adds to the memory of a process that has imported everything."""
    for what, case in MEMORY.items():
        cases = {
            "bare loop": (case, False),
            "kdx": (case, False),
            "kdx micro_batches=4": (replace(case, micro_batches=4), False),
            "kdx activation_checkpointing": (case, True),
            "kdx both": (replace(case, micro_batches=4), True),
            "kdx bf16": (replace(case, half=torch.bfloat16, channels_last=True), False),
        }
        first = None
        for name, (setting, recompute) in cases.items():
            used = _in_own_process(_peak_of_an_epoch, name == "bare loop", setting, recompute)
            first = first or used
            yield Row(f"memory, {what}", name, used, "MB", used / first)


def _peak_of_an_epoch(bare: bool, case: Case, recompute: bool) -> float:
    from kdx.metrics.classification import epoch_scores  # noqa: F401  imports torchmetrics before the first measurement
    from kdx.models.activation_checkpointing import recompute_blocks

    if not bare and not recompute:  # as a run does
        keep_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the process that started this one
    before = _memory_mb("VmRSS")
    if bare:
        bare_loop(case)()
    else:
        with tempfile.TemporaryDirectory() as folder:
            trainer, keeper = kdx_trainer(case, Path(folder))
            if recompute:
                recompute_blocks(trainer.learner.network)
            trainer._train_epoch(keeper)
    return _memory_mb("VmHWM") - before


def _memory_mb(what: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, of Linux."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{what}:")[1].split()[0]) / 1024


def sweep(rounds: int) -> Iterator[Row]:
    """(d) A 3x3 sweep of temperature and alpha."""
    from bench_sweep import sweep_rows

    yield from sweep_rows(rounds)


def jobs(rounds: int) -> Iterator[Row]:
    """Several jobs on one machine."""
    from bench_sweep import job_rows

    yield from job_rows(rounds)


def scores(rounds: int) -> Iterator[Row]:
    """Seconds and memory of scoring a split, at any number of classes."""
    from bench_scores import score_rows

    yield from score_rows(rounds, _in_own_process)


def methods(rounds: int) -> Iterator[Row]:
    """What a step of every option of conf/kd costs beside one of hinton."""
    from bench_methods import method_rows

    yield from method_rows(rounds)


PARTS = (
    loop,
    levers,
    freed,
    validation,
    frameworks,
    pipelines,
    scaling,
    memory,
    scores,
    methods,
    jobs,
    together,
    devices,
    sweep,
)


def table(rows: Sequence[Row]) -> str:
    """Markdown, one table a part."""
    lines: list[str] = []
    for part in dict.fromkeys(row.part for row in rows):
        lines += [f"\n### {part}\n", "| what | median | ratio | spread of the ratio | |", "|---|---|---|---|---|"]
        for row in (row for row in rows if row.part == part):
            ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
            value = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:.2f}"
            lines.append(f"| {row.name} | {value} {row.unit} | {ratio} | {row.spread} | {row.note} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """A bar a row, a panel a part."""
    from matplotlib.figure import Figure

    parts = list(dict.fromkeys(row.part for row in rows))
    heights = [1 + sum(row.part == part for row in rows) for part in parts]
    figure = Figure(figsize=(9, 0.35 * sum(heights) + 0.6 * len(parts)), layout="constrained")
    panels = figure.subplots(len(parts), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for part, axes in zip(parts, panels, strict=True):
        own = [row for row in rows if row.part == part]
        axes.barh([row.name for row in own], [row.value for row in own], color="#4477aa")
        axes.invert_yaxis()
        axes.set_title(f"{part} ({own[0].unit})", loc="left", fontsize=9)
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=100)


def machine() -> str:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    parts = {part.__name__: part for part in PARTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    arguments = parser.parse_args()
    keep_freed_memory()  # as a run does; so the bare loop and the other frameworks have it here too
    rows: list[Row] = []
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    for name in arguments.parts or parts:
        new = list(parts[name](arguments.rounds))
        rows += new
        print(table(new), flush=True)
        told = {
            "date": f"{date.today()}",
            "machine": machine(),
            "rounds": arguments.rounds,
            "rows": [asdict(row) for row in rows],
        }
        (arguments.out / "bench.json").write_text(json.dumps(told, indent=2) + "\n")
        (arguments.out / "bench.md").write_text(f"{machine()}; medians of {arguments.rounds} rounds\n{table(rows)}")
        draw(rows, arguments.out / "bench.png")


if __name__ == "__main__":
    main()
