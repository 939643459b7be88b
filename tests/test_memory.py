"""What is kept in memory, and what goes back."""

import platform
import subprocess
import sys

import pytest
import torch

from kdx.memory import full_cleanup, get_gpu_memory_usage, peak_mb, start_peak


def test_memory_without_a_gpu_is_zero_and_cleanup_frees_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("this checks the answers on a machine without CUDA")
    assert set(get_gpu_memory_usage().values()) == {0.0}
    assert full_cleanup() == 0.0
    start_peak(torch.device("cpu"))
    assert peak_mb(torch.device("cpu")) == 0.0


STEPS = """
from resource import RUSAGE_SELF, getrusage
import torch
from kdx.memory import full_cleanup, keep_freed_memory

def step():
    first, second = torch.ones(2**22), torch.ones(2**22)  # 16 MiB each, freed at the end

def held():
    return int(open("/proc/self/statm").read().split()[1]) // 256  # MiB

keep_freed_memory()
for _ in range(100):  # glibc strands a few blocks behind small ones in its cache of these, until that is full
    step()
before = getrusage(RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
faults = getrusage(RUSAGE_SELF).ru_minflt - before
kept = held()
full_cleanup()
print(faults, kept - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_steps_use_the_memory_of_the_step_before_until_a_stage_ends() -> None:
    """In a process of its own: the setting is one of the process."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    page_faults, given_back = map(int, done.stdout.split())
    assert page_faults < 8192  # of ten steps: without the setting every one takes that many
    assert given_back > 25


@pytest.mark.parametrize("sparing", [False, True])
def test_a_run_keeps_freed_memory_unless_it_asks_for_little(
    tiny_run, monkeypatch: pytest.MonkeyPatch, sparing: bool
) -> None:
    kept = []
    monkeypatch.setattr("kdx.chain.chain.keep_freed_memory", lambda: kept.append(True))
    tiny_run(
        "stage.deliver=teacher", "model.teacher=kdx.thin:resnet8", f"activation_checkpointing={str(sparing).lower()}"
    )
    assert bool(kept) is not sparing
