"""What each method costs: a training step of every option of conf/kd beside one of hinton, and the memory it takes.

The thin networks, ResNet-20 -> 8 at 32 px in batches of 64, hardly cost anything themselves: what a method adds shows
here more than it would anywhere else. What `python -m kdx.methods` tells comes from here:

    OMP_NUM_THREADS=1 python scripts/bench.py methods --rounds 40
    python scripts/bench_methods.py outputs/bench/bench.json    # writes kdx/losses/measured.json
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from measure import Case, Row, interleave, kdx_trainer, objective_of
from torch import Tensor

from kdx.methods import MEASURED
from kdx.run import CONF, PACKAGE
from kdx.tasks import MULTI_LABEL

CASE = Case(images=2048, batch_size=64)  # more images than the negatives of crd
CACHED, OF_LABELS = "hinton, logits cached", "hinton of labels"
PART = "thin ResNet-20 -> 8, batch 64, 32 px"


def method_rows(rounds: int) -> Iterator[Row]:
    """Milliseconds of processor time of a step, and MB that it keeps for its backward pass; ratios to hinton's.

    Processor time, of one thread: other programs on the machine hardly touch it.
    """
    cases = {name: case_of(name) for name in option_names()}
    cases |= {CACHED: replace(cases["hinton"], cached=True), OF_LABELS: replace(cases["hinton"], task=MULTI_LABEL)}
    base = {name: OF_LABELS if case.task == MULTI_LABEL else "hinton" for name, case in cases.items()}
    seconds = interleave({name: step_of(case) for name, case in cases.items()}, rounds, time.process_time)
    for name, times in seconds.items():
        ratios = sorted(own / other for own, other in zip(times, seconds[base[name]], strict=True))
        cut = len(ratios) // 10
        spread = f"{ratios[cut]:.2f} to {ratios[-1 - cut]:.2f}"
        yield Row(
            f"methods, {PART}",
            name,
            1000 * statistics.median(times),
            "ms",
            statistics.median(ratios),
            spread,
            "middle 80 %",
        )
    kept = {name: megabytes_kept(case) for name, case in cases.items()}
    for name, megabytes in kept.items():
        yield Row(f"memory of methods, {PART}", name, megabytes, "MB", megabytes / kept[base[name]])


def option_names() -> list[str]:
    """Every option of conf/kd that teaches."""
    found = sorted((CONF / "kd").glob("*.yaml"))
    return [path.stem for path in found if yaml.safe_load(path.read_text())["_target_"] is not None]


def case_of(name: str) -> Case:
    """The case of a method, on the first task that it is defined for."""
    case = replace(CASE, method=name)
    terms = objective_of(case).terms.values()
    refused = any(term.method.refusal(case.task, case.classes) for term in terms)
    return replace(case, task=MULTI_LABEL) if refused else case


def step_of(case: Case) -> Callable[[], None]:
    """A training step, always on the same batch: teacher, student, loss, backward, update."""
    trainer, _ = kdx_trainer(case, Path(tempfile.mkdtemp()))
    trainer.learner.train()
    for teacher in trainer.teachers.values():
        teacher.start_epoch(trainer.train, 1, True, case.classes)
    batch = next(iter(trainer.train.epoch(1)))

    def step() -> None:
        trainer.train_step(batch, 1, 1)

    return step


def megabytes_kept(case: Case) -> float:
    """MB that a step keeps between its forward and its backward pass; each tensor once, weights included."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step_of(case)()
    return sum(kept.values()) / 2**20


def keep(bench: Path) -> None:
    """Write a benchmark's ratios where `python -m kdx.methods` reads them."""
    told = json.loads(bench.read_text())
    found: dict[str, dict[str, float]] = {"ms": {}, "MB": {}}
    for row in told["rows"]:
        if row["part"].endswith(PART):
            found[row["unit"]][row["name"]] = round(row["ratio"], 3)
    kept = {"what": f"{PART}, n={told['rounds']}", "date": told["date"], "machine": told["machine"]}
    kept |= {"step": found["ms"], "memory": found["MB"]}
    (PACKAGE / "losses" / MEASURED).write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
