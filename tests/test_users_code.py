"""Whatever the code that a user plugs in raises, wherever it does, is one line that says where."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdx.errors import KdxError
from kdx.users_code import place_of, reason_of, users_code, users_errors
from tests.conftest import REPO, TINY

RAISED = {
    "exit": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "own": ("raise type('Own', (BaseException,), {})('a\\nb')", "Own: a b"),
    "recursion": ("f = lambda f: f(f); f(f)", "RecursionError: maximum recursion depth exceeded"),
    "key": ("{}['x']", "KeyError: 'x'"),
    "silent": ("raise type('Dumb', (Exception,), {'__str__': lambda self: 1 / 0})", "Dumb"),
    "stop": ("raise StopIteration", "StopIteration"),
    "generator": ("raise GeneratorExit", "GeneratorExit"),
}
IMPORTED = {name: RAISED[name] for name in ("exit", "own", "recursion")}
IMPORTED |= {
    "syntax": ("def (:", "SyntaxError: invalid syntax"),
    "missing": ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
    "zero": ("1 / 0", "ZeroDivisionError: division by zero"),
}
MODULE = """
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from tests.tiny import TinyNet, dataset

def break_when(where, step=1):
    if where == "{where}" and step == {step}:
        {code}

def build(num_classes, in_channels):
    break_when("network")
    return Network(num_classes, in_channels, width=4)

class Network(TinyNet):
    steps = 0
    def forward(self, images):
        self.steps += self.training
        break_when("forward", self.steps)
        return super().forward(images)

class Loss:
    def __init__(own, **numbers):
        break_when("loss")
    def __call__(own, student, teacher, labels):
        break_when("call")
        return student.square().mean()

class Optimizer(SGD):
    def step(own, closure=None):
        break_when("update")
        return super().step(closure)

class Schedule(LambdaLR):
    def __init__(own, optimizer, **numbers):
        super().__init__(optimizer, lambda epoch: 1.0)
        own.built = True
    def step(own, epoch=None):
        if hasattr(own, "built"):
            break_when("schedule")
        super().step()

def data():
    break_when("data")
    return dataset()
"""
KEYS = {
    "network": "model.teacher={name}:build: cannot be called with num_classes and in_channels",
    "forward": "model.teacher={name}:build: fails on 8x8 images",
    "loss": "kd: {name}.Loss cannot be built",
    "call": "kd: {name}.Loss fails in a training step",
    "update": "optimizer: {name}.Optimizer fails in a training step",
    "schedule": "scheduler: {name}.Schedule fails in a training step",
    "data": "dataset.source: {name}.data cannot be built",
}


def plugged_in(name: str) -> list[str]:
    return [
        f"model.teacher={name}:build",
        "model.assistant=tests.tiny:network",
        f"kd={{_target_: {name}.Loss}}",
        f"optimizer={{_target_: {name}.Optimizer, _partial_: true, lr: 0.01}}",
        f"scheduler={{_target_: {name}.Schedule, _partial_: true}}",
        f"dataset.source={{_target_: {name}.data}}",
    ]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module into a folder that Python searches; its name, which no other test has used."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        name = f"own_{abs(hash((text, str(tmp_path))))}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.mark.parametrize("where", KEYS)
@pytest.mark.parametrize("kind", RAISED)
def test_what_it_raises_is_one_line_before_training(kind: str, where: str, module, tiny_run) -> None:
    code, told = RAISED[kind]
    name = module(MODULE.format(where=where, step=1, code=code))
    with pytest.raises(KdxError) as error:
        tiny_run(*plugged_in(name))
    line = str(error.value)
    assert line.startswith(f"{KEYS[where].format(name=name)}: {told}") and "\n" not in line
    assert f"({name}.py, line 8)" in line  # of the innermost frame of the user's


@pytest.mark.parametrize("kind", IMPORTED)
@pytest.mark.parametrize("part", [0, 2, 3, 4, 5])
def test_what_its_module_raises_is_one_line(kind: str, part: int, module, tiny_run) -> None:
    code, told = IMPORTED[kind]
    name = module(f"\n{code}\n")
    with pytest.raises(KdxError) as error:
        tiny_run(plugged_in(name)[part])
    line = str(error.value)
    key = plugged_in(name)[part].split("=")[0]
    assert line.startswith(key) and told in line and f"({name}.py, line 2)" in line and "\n" not in line


def test_what_it_raises_in_the_midst_of_training_is_one_line(module, tiny_run, tmp_path: Path) -> None:
    name = module(MODULE.format(where="forward", step=5, code=RAISED["exit"][0]))
    with pytest.raises(KdxError, match=rf"^teacher: SystemExit: 0 \({name}.py, line 8\)$"):
        tiny_run(*plugged_in(name))
    summary = json.loads((tmp_path / "outputs" / "run1" / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["error"].startswith("teacher: SystemExit: 0")


def test_a_run_whose_network_asks_to_exit_did_not_succeed(tmp_path: Path, kdx_environment) -> None:
    command = [sys.executable, "-m", "kdx.run", *TINY, "model.teacher=tests.tiny:exits"]
    done = subprocess.run(command, cwd=tmp_path, env=kdx_environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and done.stderr.startswith("error: model.teacher=tests.tiny:exits: "), done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_ctrl_c_and_errors_of_kdx_pass() -> None:
    for error in (KeyboardInterrupt(), KdxError("mine")):
        for context in (users_code("what"), users_errors()):
            with pytest.raises(type(error)) as raised, context:
                raise error
            assert raised.value is error


def test_python_and_installed_packages_are_nobody_s_own_code() -> None:
    with pytest.raises(ValueError) as error:
        json.loads("{")
    found = error.value
    assert found.__traceback__ is not None and place_of(found) is not None  # this test's own file
    assert place_of(found.with_traceback(found.__traceback__.tb_next)) is None
    with pytest.raises(KdxError, match="^teacher: SystemExit: 3 "), users_errors("teacher"):
        sys.exit(3)


def test_long_texts_are_cut_and_files_elsewhere_named_whole(
    tmp_path: Path, module, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(reason_of(ValueError("x" * 1000))) < 330
    assert place_of(ValueError()) is None
    name = module("def fail():\n    raise ValueError\n")
    monkeypatch.chdir(REPO)
    with pytest.raises(ValueError) as error:
        __import__(name).fail()
    assert place_of(error.value) == f"{tmp_path / name}.py, line 2"
