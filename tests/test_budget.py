"""Which student for a budget: costs measured once a network, the Pareto front, the smallest that is close to its teacher."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from kdx.chain.chain import run_chain
from kdx.errors import KdxError
from kdx.report.budget import budget_of, recommendation
from kdx.report.sweep import write_report
from kdx.results import grouped, load, load_sweep, read_costs
from kdx.sweeps import costs
from tests.conftest import settings_of
from tests.test_report import write_job

TIMING = {"images_per_s_batch_1": 1.0, "latency_ms_batch_64": 1.0, "images_per_s_batch_64": 1.0, "peak_memory_mb": 1.0}


def sweep_of(folder: Path, **students: tuple[float, float, float, int]) -> Path:
    """A sweep over students of (validation, test, latency, parameters) under a teacher of 95 and 94 percent."""
    networks = []
    for number, (name, (validation, test, latency, parameters)) in enumerate(students.items()):
        write_job(folder, number, [f"model.student={name}", "kd=hinton"], validation, test)
        path = folder / str(number) / "summary.json"
        told = json.loads(path.read_text())
        told["student"] |= {"network": name, "parameters": parameters, "checkpoint_mb": parameters / 250}
        told["teacher"] |= {"parameters": 999, "checkpoint_mb": 4.0, "network": "big"}
        path.write_text(json.dumps(told))
        counted = {"parameters": parameters, "multiply_adds": 1000 * parameters}
        timing = {"cpu": TIMING | {"latency_ms_batch_1": latency}}
        networks.append({"network": name, "fingerprints": [f"s{number}"], "efficiency": counted | timing})
    counted = {"parameters": 999, "multiply_adds": 999_000}
    networks.append({"network": "big", "fingerprints": ["t"], "efficiency": networks[0]["efficiency"] | counted})
    (folder / "costs.json").write_text(json.dumps({"networks": networks}))
    return folder


def test_the_front_is_marked_and_validation_names_the_smallest_that_is_close(tmp_path: Path) -> None:
    sweep_of(
        tmp_path,
        small=(94.1, 80.0, 1.0, 10),  # close on validation, far on test: test has no say
        tiny=(93.9, 95.0, 2.0, 5),
        slow=(95.0, 80.0, 3.0, 20),  # as good as `small` for more
        large=(95.0, 99.0, 4.0, 40),
    )
    budget = budget_of(grouped(load_sweep(tmp_path)))
    fronts = {student.network: student.of_front for student in budget.students}
    every = ("latency", "size", "multiply-adds")
    assert fronts == {"tiny": every, "small": ("latency",), "slow": (), "large": every}
    said = recommendation(budget)
    assert "within 1 point of the teacher's validation accuracy: small (CPU ms, 1 image: 1.00; file MB: 0.04;" in said
    assert said.endswith("Its test accuracy 80.00, the teacher's 94.00.")
    told = write_report(tmp_path)
    assert said in told and "big      teacher  1  95.00" in told
    html = (tmp_path / "report.html").read_text()
    assert html.count("filled: no student is better for less") == 3


def test_no_student_is_close_or_has_a_teacher_or_its_costs_are_not_known(tmp_path: Path) -> None:
    sweep_of(tmp_path / "far", a=(90.0, 80.0, 1.0, 10), b=(93.9, 95.0, 2.0, 5))
    budget = budget_of(grouped(load_sweep(tmp_path / "far")))
    assert "No student is within 1 point" in recommendation(budget) and "nearest is b: 93.90 against 95.00" in (
        recommendation(budget)
    )
    known = json.loads((tmp_path / "far" / "costs.json").read_text())
    shutil.copytree(tmp_path / "far", tmp_path / "lone")
    for path in (tmp_path / "lone").glob("*/summary.json"):
        path.write_text(
            json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "teacher"})
        )
    assert "has its teacher beside it" in recommendation(budget_of(grouped(load_sweep(tmp_path / "lone"))))
    (tmp_path / "far" / "costs.json").write_text(json.dumps({"networks": known["networks"][1:]}))
    assert budget_of(grouped(load_sweep(tmp_path / "far"))) is None
    (tmp_path / "far" / "costs.json").write_text(
        '{"networks": [{"network": "a", "fingerprints": [], "efficiency": {}}]}'
    )
    with pytest.raises(KdxError, match=r"costs.json: a.efficiency: parameters, multiply_adds and the timings"):
        load(tmp_path / "far")
    sweep_of(tmp_path / "one", a=(90.0, 80.0, 1.0, 10))
    assert budget_of(grouped(load_sweep(tmp_path / "one"))) is None


class Inline:
    """A process that is this one."""

    exitcode = 0

    def __init__(self, target, args, name: str) -> None:
        self.start = lambda: target(*args)

    def join(self) -> None: ...


def test_each_network_is_measured_once_and_code_of_a_user_only_where_the_command_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kdx.deploy.efficiency.SECONDS", 0.001)
    monkeypatch.setattr(costs, "forkserver", lambda: type("Context", (), {"Process": Inline}))
    common = [f"output_dir={tmp_path / 'outputs'}", "stage=student", "epochs=1", "kd=none"]

    def job(number: int, student: str, seed: int) -> None:
        folder, own = tmp_path / "sweep" / str(number), [f"model.student=tests.tiny:{student}", f"seed={seed}"]
        folder.mkdir(parents=True)
        run_chain(settings_of(*common, *own), folder, own)

    job(0, "wide", 0)
    costs.measure_costs(tmp_path / "sweep", own=True)
    assert not read_costs(tmp_path / "sweep")  # one network: nothing to choose
    job(1, "network", 0)
    with caplog.at_level(logging.INFO):
        costs.measure_costs(tmp_path / "sweep", own=False)
    assert caplog.text.count("names code of yours, which is run only if you say so") == 2
    costs.measure_costs(tmp_path / "sweep", own=True)
    first = read_costs(tmp_path / "sweep")
    assert [found.network for found in first] == ["tests.tiny:wide", "tests.tiny:network"]
    job(2, "wide", 1)
    costs.measure_costs(tmp_path / "sweep", own=True)
    again = read_costs(tmp_path / "sweep")
    assert [found.efficiency for found in again] == [found.efficiency for found in first]
    frame = load_sweep(tmp_path / "sweep")
    assert frame["student_latency_ms"].tolist() == [
        again[number].efficiency["cpu"]["latency_ms_batch_1"] for number in (0, 1, 0)
    ]
    assert "model.student=tests.tiny:wide" in {group.name for group in grouped(frame)} and budget_of(grouped(frame))


def test_a_student_without_costs_is_named_and_a_teacher_needs_none(tmp_path: Path) -> None:
    students = {"small": (94.1, 80.0, 1.0, 10), "large": (95.0, 99.0, 4.0, 40), "own": (95.5, 99.5, 0.5, 3)}
    sweep_of(tmp_path, **students)
    path = tmp_path / "costs.json"
    networks = json.loads(path.read_text())["networks"]
    path.write_text(json.dumps({"networks": [each for each in networks if each["network"] not in ("own", "big")]}))
    budget = budget_of(grouped(load_sweep(tmp_path)))
    assert [student.network for student in budget.students] == ["small", "large"] and budget.teacher is not None
    said = recommendation(budget)
    assert said.startswith("Not among the students, as their costs were not measured: own. The smallest student within")
    assert "big      teacher  1  95.00" in write_report(tmp_path)


def test_students_of_different_data_have_no_common_front(tmp_path: Path) -> None:
    sweep_of(tmp_path, small=(94.1, 80.0, 1.0, 10), large=(95.0, 99.0, 4.0, 40))
    for number, name in enumerate(("easy", "hard")):
        path = tmp_path / str(number) / "summary.json"
        lineage = [{"what": "data", "name": name, "hash": name}]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lineage": lineage}))
    assert budget_of(grouped(load_sweep(tmp_path))) is None
