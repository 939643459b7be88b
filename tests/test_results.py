"""Runs as a DataFrame: typed columns, a row a run, groups over seeds; and the reports agree with it."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdx.errors import KdxError
from kdx.report.sweep import write_report
from kdx.report.sweep_csv import CSV_COLUMNS
from kdx.results import (
    best_of,
    configurations,
    epochs,
    grid,
    grouped,
    load,
    read_run,
    roles_of,
    selection_of,
    write_run,
)
from kdx.results.groups import first_teacher
from kdx.results.overrides import as_text, typed_overrides
from tests.conftest import REPO
from tests.test_report import write_job


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPO / "tests" / "fixtures" / "version_0_1", tmp_path / "outputs"))


def test_overrides_have_types() -> None:
    given = ["seed=3", "kd.alpha=0.50", "lr=1e-3", "resume=True", "model.student=resnet18", "name='007'", "+x=-.5"]
    values = typed_overrides([*given, "size=28\\:28", "~scheduler", "dataset.augment=[crop]", "threads=null", "id=1_0"])
    assert values == {
        **{"seed": 3, "kd.alpha": 0.5, "lr": 0.001, "resume": True, "model.student": "resnet18", "name": "007"},
        **{"x": -0.5, "size": "28:28", "~scheduler": "", "dataset.augment": "[crop]", "threads": "null", "id": "1_0"},
    }
    assert [type(values[key]) for key in ("seed", "kd.alpha", "resume")] == [int, float, bool]


def test_cells_show_numbers_as_they_were_given() -> None:
    import pandas as pd

    assert [as_text(x) for x in (True, 4, 4.0, 0.5, 1e-7, None, float("nan"), pd.NA, "x")] == [
        *("true", "4", "4", "0.5", "1e-07", "", "", "", "x")
    ]


def test_a_run_a_sweep_and_a_tree(outputs: Path) -> None:
    run, sweep = load(outputs / "run"), load(outputs / "sweep")
    assert len(run) == 1 and len(sweep) == 4
    told = json.loads((outputs / "run" / "summary.json").read_text())
    row = run.iloc[0]
    assert row["status"] == "finished" and row["dataset"] == "digits" and row["delivered"] == "student"
    for role in ("teacher", "student"):
        stage, test = told[role], told[role]["test"]
        expected = {
            **{name: stage[name] for name in ("network", "status", "fingerprint", "epoch", "parameters", "seconds")},
            "val_accuracy": stage["validation"]["accuracy"],
            "val_f1_score": stage["validation"]["f1_score"],
            **{f"test_{name}": test[name] for name in ("accuracy", "f1_score", "auc")},
            "test_ece": test["calibration"]["ece"],
        }
        assert {name: row[f"{role}_{name}"] for name in expected} == expected
        assert Path(row[f"{role}_checkpoint"]).is_file()
    assert row["student_test_agreement"] == told["student"]["test"]["guide_agreement"]
    both = load(outputs)
    assert len(both) == 5 and len(load(outputs / "run", outputs / "sweep")) == 5
    assert set(sweep.columns) <= set(both.columns) and both["seed"].dtype == "Int64"  # a run without one has NA
    with pytest.raises(KdxError, match="holds no run"):
        load(outputs / "index")
    with pytest.raises(KdxError, match="no such folder"):
        load(outputs / "nix")


def test_columns_keep_their_types_where_runs_differ(tmp_path: Path) -> None:
    write_job(tmp_path, 0, ["epochs=4", "resume=true", "kd.alpha=1", "x=1"], 90, 80)
    write_job(tmp_path, 1, ["kd.alpha=0.5", "x=a"], 91, 81)
    write_job(tmp_path, 2, ["epochs=10", "resume=false", "kd.alpha=0.5", "x=99999999999999999999"], 0, 0, "failed")
    frame = load(tmp_path)
    assert [str(frame[key].dtype) for key in ("epochs", "resume", "kd.alpha", "x")] == [
        *("Int64", "boolean", "float64", "object")
    ]
    assert frame["epochs"].tolist()[::2] == [4, 10] and frame["epochs"].isna().tolist() == [False, True, False]
    assert frame["x"].tolist() == [1, "a", 99999999999999999999]
    assert frame["reason"].tolist() == [None, None, "student: loss is nan in epoch 2, step 3"]
    assert frame["student_test_accuracy"].isna().tolist() == [False, False, True]
    assert frame["delivered"].tolist() == ["student", "student", None]


def test_runs_beside_folders_with_numbers_are_loaded(tmp_path: Path) -> None:
    write_job(tmp_path, 1, ["seed=1"], 90, 80)  # as hydra.run.dir=runs/1 leaves it
    write_job(tmp_path / "deep" / "er", 2, ["seed=2"], 90, 80)
    write_job(tmp_path, 3, ["seed=3"], 90, 80)
    (tmp_path / "3").rename(tmp_path / "baseline")
    assert sorted(load(tmp_path)["seed"]) == [1, 2, 3]


def test_a_run_that_went_on_is_a_seed_like_the_others(tmp_path: Path) -> None:
    for seed in range(3):
        write_job(tmp_path, seed, ["kd=dkd", f"seed={seed}", *(["resume=true"] if seed else [])], 80, 80 + seed)
    assert configurations(load(tmp_path))["n"].tolist() == [3]


def test_runs_selected_by_different_scores_are_ranked_by_accuracy(tmp_path: Path) -> None:
    write_job(tmp_path, 0, ["kd=dkd", "seed=0"], 80, 80)
    write_job(tmp_path, 1, ["kd=dkd", "seed=1"], 90, 80)
    path = tmp_path / "1" / "summary.json"
    told = json.loads(path.read_text())
    told["student"] |= {"selected_by": "auc", "validation": told["student"]["validation"] | {"auc": 0.9}}
    path.write_text(json.dumps(told))
    assert "with 85.00 ± 7.07 (n=2) validation accuracy" in write_report(tmp_path)


def by_loss(folder: Path, number: int, overrides: list[str], loss: float, accuracy: float | None) -> None:
    """A job whose epoch its loss chose; without an accuracy it has learnt no classifier."""
    write_job(folder, number, overrides, accuracy or 0, 80)
    path = folder / str(number) / "summary.json"
    told = json.loads(path.read_text())
    told["student"] |= {"selected_by": "loss", "validation": told["student"]["validation"] | {"loss": loss}}
    if accuracy is None:
        told["student"]["validation"], told["student"]["test"] = {"loss": loss}, {"epoch": 1}
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["kd.alpha={}"], False),
        (["kd.temperature={}"], False),
        (["stage.student.kd.weight={}"], False),
        (["label_smoothing={}"], False),
        (["stage.student.class_weights={}"], False),
        (["experiment={}"], False),
        (["optimizer.lr=0.{}", "kd.alpha={}"], False),
        (["kd.lr=0.{}"], True),
        (["optimizer.lr=0.{}"], True),
        (["stage.teacher.label_smoothing={}"], True),
        (["kd.alpha=0.5", "batch_size={}"], True),
        (["kd=none", "kd.alpha=0.5", "batch_size={}"], True),
        (["kd=none", "label_smoothing={}"], False),
    ],
)
def test_losses_rank_configurations_only_where_they_are_one_quantity(
    tmp_path: Path, overrides: list[str], same: bool
) -> None:
    by_loss(tmp_path, 0, [key.format(1) for key in overrides], loss=0.1, accuracy=70)
    by_loss(tmp_path, 1, [key.format(2) for key in overrides], loss=0.9, accuracy=90)
    groups = grouped(load(tmp_path))
    assert len(groups) == 2 and selection_of(groups)[0] == ("loss" if same else "accuracy")
    assert best_of(groups) is groups[0 if same else 1]
    assert configurations(load(tmp_path))["val_loss_mean"].tolist() == ([0.1, 0.9] if same else [0.9, 0.1])
    text = write_report(tmp_path)
    assert ("are not one quantity" in text) != same and f"validation {'loss' if same else 'accuracy'};" in text


def test_nothing_is_best_where_neither_losses_nor_accuracies_compare(tmp_path: Path) -> None:
    for number, weight in enumerate((10, 1000)):
        by_loss(tmp_path, number, ["kd=pkt", f"kd.weight={weight}", f"batch_size={weight}"], float(weight), None)
    text = write_report(tmp_path)
    assert "Nothing is best on validation: the losses under different kd.weight are not one quantity" in text
    assert "Best on" not in text and "nan" not in text + (tmp_path / "sweep.md").read_text()


def test_groups_and_grids(tmp_path: Path) -> None:
    number = 0
    for temperature in (2, 10, 2.5):
        for alpha in (0.3, 0.7):
            for seed in (0, 1):
                overrides = [f"kd.temperature={temperature}", f"kd.alpha={alpha}", f"seed={seed}"]
                write_job(tmp_path, number, overrides, val=50 + temperature + 10 * alpha + seed, test=60 + seed)
                number += 1
    frame = load(tmp_path)
    table = configurations(frame)
    assert (
        len(table) == 6
        and set(table["n"]) == {2}
        and table["test_accuracy_std"].tolist() == pytest.approx([0.5**0.5] * 6)
    )
    assert table.iloc[0][["kd.temperature", "kd.alpha", "val_accuracy_mean"]].tolist() == [10, 0.7, 67.5]
    shaped = grid(frame, "kd.temperature", "kd.alpha")
    assert shaped.index.tolist() == [2, 2.5, 10] and shaped.columns.tolist() == [0.3, 0.7]
    assert shaped.loc[2.5, 0.7] == pytest.approx(60) and grid(frame, "kd.alpha", "kd.temperature").shape == (2, 3)
    assert grid(frame, "kd.alpha", "kd.temperature", "test_accuracy").to_numpy().ravel().tolist() == [60.5] * 6
    teachers = configurations(frame, "teacher")
    assert set(teachers["n"]) == {1} and teachers["val_accuracy_std"].isna().all()  # one stage, shared
    for rows, columns in (("kd.alpha", "kd.alpha"), ("kd.alpha", "nix"), ("kd.alpha", "seed")):
        with pytest.raises(KdxError, match="choose two of kd.temperature, kd.alpha"):
            grid(frame, rows, columns)
    with pytest.raises(KdxError, match="val_acuracy: choose one of val_selected, val_accuracy"):
        grid(frame, "kd.temperature", "kd.alpha", "val_acuracy")
    one_alpha = frame[frame["kd.alpha"] == 0.3]  # a value that all runs share is an axis of one
    assert grid(one_alpha, "kd.temperature", "kd.alpha").shape == (3, 1)
    assert len(configurations(frame.head(1))) == 1 and not len(configurations(frame[frame["status"] == "failed"]))
    import pandas as pd

    parts = pd.concat([load(tmp_path / "0"), load(tmp_path / "11")], ignore_index=True)
    assert configurations(parts)["kd.temperature"].tolist() == [2.5, 2.0]


def test_teachers_come_first_also_where_the_first_job_has_none(tmp_path: Path) -> None:
    """With `kd=none,hinton` the first job trains a student alone: it is nobody's teacher."""
    for number, method in enumerate(("none", "hinton")):
        for seed in (0, 1):
            job = 2 * number + seed
            write_job(tmp_path, job, [f"kd={method}", f"seed={seed}"], val=60 + 30 * number, test=59 + 30 * number)
            if method == "none":
                summary = tmp_path / str(job) / "summary.json"
                record = json.loads(summary.read_text())
                record.pop("teacher")
                summary.write_text(json.dumps(record | {"plan": record["plan"][1:]}))
    assert roles_of(load(tmp_path)) == ["teacher", "student"]
    assert "Over its teacher (94.00 " in write_report(tmp_path)


def test_epochs_of_a_file_a_stage_and_a_run(outputs: Path) -> None:
    stage = outputs / "run" / "student"
    (log,) = (stage / "logs").glob("*_log.csv")
    with open(log) as file:
        rows = list(csv.DictReader(file))
    for where in (log, stage, outputs / "run"):
        table = epochs(where)
        assert table["epoch"].tolist() == list(range(1, len(rows) + 1)) and table["epoch"].dtype == int
        assert table["val_accuracy"].tolist() == [float(row["val_accuracy"]) for row in rows]
    (stage / "logs").rename(stage / "gone")
    with pytest.raises(KdxError, match="no epoch log"):
        epochs(outputs / "run")


def test_report_and_csv_agree_with_the_frame_to_the_digit(outputs: Path) -> None:
    sweep = outputs / "sweep"
    write_report(sweep)
    frame = load(sweep)
    with open(sweep / "sweep.csv") as file:
        rows = list(csv.DictReader(file))
    text = (sweep / "sweep.md").read_text()
    for row, (_, run) in zip(rows, frame.iterrows(), strict=True):
        for name in (f"{role}_{column}" for role in ("teacher", "student") for column in CSV_COLUMNS):
            assert row[name] == as_text(run[name])
            if name.endswith(("accuracy", "auc", "loss", "f1_score", "ece")) and row[name]:
                assert float(row[name]) == run[name]
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['job']} | "))
        assert f"| {run['student_val_accuracy']:.2f} | {run['student_test_accuracy']:.2f} |" in line
    for _, group in configurations(frame).iterrows():
        assert f"{group['test_accuracy_mean']:.2f} ± {group['test_accuracy_std']:.2f}" in text


def test_what_is_written_is_what_was_read(outputs: Path, tmp_path: Path) -> None:
    """The form on disk is that of version 0.1 with keys more."""
    before = json.loads((outputs / "run" / "summary.json").read_text())
    run = read_run(outputs / "run")
    write_run(tmp_path, run)
    after = json.loads((tmp_path / "summary.json").read_text())
    assert {key: after[key] for key in before if key not in run.stages} == {
        key: value for key, value in before.items() if key not in run.stages
    }
    for role, stage in run.stages.items():
        left_out = {key for key in before[role] if before[role][key] != after[role].get(key)}
        assert left_out <= {"validation"}, role  # a loss term that no reader knows
        assert after[role]["validation"].items() <= before[role]["validation"].items()
        assert stage.test == before[role]["test"]
    assert read_run(tmp_path) == run


def test_a_training_imports_no_pandas() -> None:
    """kdx's own modules, that is: a second before the first step."""
    code = "import sys, kdx.chain.chain, kdx.results, kdx.report.run; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0


@pytest.mark.parametrize(
    ("guides", "measured_against"),
    [
        ({"teacher": [], "assistant": ["teacher"], "student": ["assistant"]}, "teacher"),
        ({"assistant": ["teacher"], "student": ["assistant"]}, "assistant"),  # the teacher was in another run
        ({"teacher": [], "assistant": [], "student": ["assistant", "teacher"]}, "assistant"),
        ({"teacher": [], "student": []}, "teacher"),  # without distillation
        ({"teacher": [], "pupil": ["teacher"], "student": []}, "teacher"),  # which starts from the pupil
        ({"pupil": ["headless"], "student": []}, None),  # as before, and its teacher has no accuracy
        ({"student": ["headless"]}, None),
        ({"student": []}, None),
    ],
)
def test_who_a_stage_is_measured_against(guides: dict[str, list[str]], measured_against: str | None) -> None:
    assert first_teacher(guides, "student") == measured_against
