"""Which runs are one configuration, which were distilled, by whom, and on which data: what a report compares."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from kdx.chain.chain import run_chain
from kdx.report.__main__ import main
from kdx.report.budget import budget_of, recommendation
from kdx.report.gains import compare, gains
from kdx.report.sweep import write_report
from kdx.results import configurations, grid, grouped, load, load_sweep, read_run
from tests.conftest import settings_of
from tests.test_budget import TIMING
from tests.test_report import stage, write_job


def change(folder: Path, role: str | None = None, **facts: Any) -> None:
    """Other facts in a run's record, or in that of a stage."""
    path = folder / "summary.json"
    told = json.loads(path.read_text())
    (told if role is None else told.setdefault(role, {})).update(facts)
    path.write_text(json.dumps(told))


def drop(folder: Path, role: str) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != role}))


def test_who_was_taught_is_no_baseline_whatever_the_command_line_says(tmp_path: Path) -> None:
    """An experiment may give the student a method of its own, and `kd=none` means the others then."""
    for number, (kd, seed) in enumerate((kd, seed) for kd in ("none", "dkd") for seed in (0, 1)):
        write_job(tmp_path, number, [f"kd={kd}", f"seed={seed}"], 90, 80 + number)
        change(tmp_path / str(number), "student", guide="teacher", guide_fingerprint="t", fingerprint=f"s{number}")
    assert [group.distilled for group in grouped(load_sweep(tmp_path))] == [True, True]
    text = write_report(tmp_path)
    assert "whether distillation helps cannot be told" in text and "Gain over no distillation" not in text
    assert {row["gain"] for row in csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines())} == {""}


def test_a_stage_from_a_file_that_had_no_teacher_has_none_in_the_record(tmp_path: Path) -> None:
    common = [f"output_dir={tmp_path / 'outputs'}", "epochs=1", "report=false"]
    run_chain(settings_of(*common, "stage.deliver=student", "kd=none"), tmp_path / "alone")
    best = tmp_path / "alone" / read_run(tmp_path / "alone").stages["student"].checkpoint
    loaded = [f"stage.student.checkpoint='{best}'", "stage.deliver=student", "stage.student.guide=teacher", "kd=hinton"]
    run_chain(settings_of(*common, *loaded), tmp_path / "loaded")
    student = read_run(tmp_path / "loaded").stages["student"]
    assert student.status == "loaded" and student.guide is None


def chain_of_three(folder: Path) -> Path:
    """Two students under an assistant; only the first job's seed 1 had to train, and so records, the teacher."""
    told = {"guide": "assistant", "checkpoint_mb": 1.0}
    for number, (network, seed) in enumerate((network, seed) for network in ("small", "large") for seed in (0, 1)):
        job = folder / str(number)
        write_job(folder, number, [f"model.student={network}", f"seed={seed}"], 80 + number, 80 + number)
        change(job, "student", network=network, parameters=10 + number, guide_fingerprint=f"a{seed}", **told)
        assistant = stage("assistant", 81, 81, f"a{seed}") | {"guide": "teacher", "guide_fingerprint": f"t{seed}"}
        record = json.loads((job / "summary.json").read_text())
        teacher, student = (record.pop(role) for role in ("teacher", "student"))
        above = {"teacher": teacher | {"fingerprint": "t1", "network": "huge"}} if number == 1 else {}
        record |= {**above, "assistant": assistant, "student": student}
        record["plan"] = [{"role": role, "action": "reuse"} for role in (*above, "assistant", "student")]
        (job / "summary.json").write_text(json.dumps(record))
    timing = TIMING | {"latency_ms_batch_1": 1.0}
    networks = [
        {"network": name, "fingerprints": prints, "efficiency": {"parameters": 10, "multiply_adds": 9, "cpu": timing}}
        for name, prints in (("small", ["s0", "s1"]), ("large", ["s2", "s3"]), ("huge", ["t1"]))
    ]
    (folder / "costs.json").write_text(json.dumps({"networks": networks}))
    return folder


def test_the_teacher_is_the_one_that_any_job_of_the_sweep_records(tmp_path: Path) -> None:
    groups = grouped(load_sweep(chain_of_three(tmp_path)))
    assert [group.teacher for group in groups] == ["teacher", "teacher"]
    assert [len(group.stages("teacher")) for group in groups] == [1, 1]  # seed 0's is nowhere
    budget = budget_of(groups)
    assert budget is not None and budget.teacher is not None
    assert (budget.teacher.role, budget.teacher.network, budget.teacher.validation) == ("teacher", "huge", 95)
    assert "nearest is large: 83.00 against 95.00" in recommendation(budget)  # of the seed that both have
    text = write_report(tmp_path)
    assert "Over its teacher (94.00 (n=1)): -11.00 (n=1)" in text


def test_an_assistant_whose_teacher_nobody_records_is_called_an_assistant(tmp_path: Path) -> None:
    drop(chain_of_three(tmp_path) / "1", "teacher")
    text = write_report(tmp_path)
    assert "Over its assistant (81.00 ± 0.00 (n=2)): +1.50" in text and "the teacher" not in text
    assert "The smallest student within 1 point of the assistant's validation accuracy: small" in text


def test_two_options_of_one_recorded_name_are_two_data_sets(tmp_path: Path) -> None:
    """Options of a user's own for folders of pictures are all recorded as `imagefolder`."""
    number = 0
    for name, seeds in (("cats", (0, 1)), ("birds", (2, 3))):
        for rate in (0.1, 0.2):
            for seed in seeds:
                words = [f"dataset={name}", f"optimizer.lr={rate}", f"seed={seed}"]
                write_job(tmp_path, number, words, 90, 80 + number, data=f"imagefolder {name}")
                number += 1
    frame = load_sweep(tmp_path)
    assert frame["dataset"].tolist() == ["cats"] * 4 + ["birds"] * 4
    assert [group.name for group in grouped(frame)] == [
        *(f"dataset={name} optimizer.lr={rate}" for name in ("cats", "birds") for rate in (0.1, 0.2))
    ]
    text = write_report(tmp_path)
    assert "Runs on cats, birds: nothing is best among different data sets" in text
    assert "Best on validation" not in text and "Stages of the best" not in text
    assert list(grid(frame, "dataset", "optimizer.lr").index) == ["birds", "cats"]


@pytest.mark.parametrize(
    ("key", "one", "other", "compared"),
    [
        ("dataset.size", "32", "64", True),  # the same images
        ("dataset.white", "255", "4095", True),
        ("dataset.path", "cats", "birds", False),
        ("dataset.source.split", "1", "2", False),
        ("dataset.augment", "crop", "flip", False),  # the contents changed, whatever the reason
    ],
)
def test_contents_may_differ_by_pixels_only(tmp_path: Path, key: str, one: str, other: str, compared: bool) -> None:
    for number, (value, seed) in enumerate((value, seed) for value in (one, other) for seed in (0, 1)):
        write_job(tmp_path, number, [f"{key}={value}", f"seed={seed}"], 90, 80 + number**2, data=f"own {value}")
    (comparison,) = compare(grouped(load_sweep(tmp_path)))
    assert (comparison.difference is not None) == compared
    assert ("Runs on several contents of own: nothing is best" in write_report(tmp_path)) != compared


def test_sweeps_with_other_settings_under_equal_command_lines_are_not_pooled(tmp_path: Path) -> None:
    for name, seeds, gain in (("one", (0, 1), 0), ("two", (0, 1, 2), 5)):
        for seed in seeds:
            write_job(tmp_path / name, seed, ["kd=none", f"seed={seed}"], 80, 80 + seed)
            write_job(tmp_path / name, seed + 3, ["kd=dkd", f"seed={seed}"], 82, 82 + gain + seed)
            change(tmp_path / name / str(seed + 3), "student", fingerprint=f"{name}{seed}")  # the experiment was edited
    table = configurations(load(tmp_path / "one", tmp_path / "two")).set_index(["kd", "sweep"])
    assert table["n"].to_dict() == {("dkd", "two"): 3, ("dkd", "one"): 2, ("none", "one"): 2, ("none", "two"): 3}
    found = gains(load(tmp_path)).set_index("sweep")
    assert found["against"].to_dict() == {"one": "kd=none sweep=one", "two": "kd=none sweep=two"}
    same = configurations(load(tmp_path / "one", tmp_path / "one"))
    assert same["n"].tolist() == [2, 2] and "sweep" not in same


def test_data_that_changed_between_two_sweeps_of_other_seeds_are_not_pooled(tmp_path: Path) -> None:
    for name, first in (("one", 0), ("two", 2)):
        for seed in (first, first + 1):
            write_job(tmp_path / name, seed, ["kd=dkd", f"seed={seed}"], 90, 90 + seed, data=f"own {name}")
    both = grouped(load(tmp_path / "one", tmp_path / "two"))
    assert [(group.values["data_hash"], len(group.runs)) for group in both] == [("one", 2), ("two", 2)]


def test_the_seed_and_what_a_variable_gave_are_those_of_the_record(tmp_path: Path) -> None:
    """A job array starts one command under many values of an environment variable."""
    for number, (rate, seed) in enumerate((rate, seed) for rate in (0.1, 0.2) for seed in (0, 1)):
        write_job(tmp_path, number, ["seed=${oc.env:S}", f"optimizer.lr={rate}"], 90, 80 + number)
        change(tmp_path / str(number), seed=seed)
    jobs = {
        str(n): {"overrides": ["seed=${oc.env:S}", "optimizer.lr=${oc.env:LR}"], "state": "finished"} for n in range(4)
    }
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    frame = load(tmp_path)
    assert frame["seed"].tolist() == [0, 1, 0, 1] and frame["optimizer.lr"].tolist() == [0.1, 0.1, 0.2, 0.2]
    (row,) = gains(frame).to_dict("records")
    assert (row["n"], row["paired"]) == (2, True)


def test_a_job_whose_folder_is_gone_is_missing(tmp_path: Path) -> None:
    write_job(tmp_path, 0, ["seed=0"], 90, 80)
    jobs = {str(n): {"overrides": [f"seed={n}"], "folder": str(n), "state": "finished"} for n in (0, 1)}
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    assert load(tmp_path)["status"].tolist() == ["finished", "missing"]
    text = write_report(tmp_path)
    assert "1 of 2 jobs finished" in text and "missing  summary.json is missing" in text


def test_one_measure_ranks_all_that_a_page_names(tmp_path: Path) -> None:
    """The losses under two methods are not one quantity, so accuracy ranks, also among those of one method."""
    for number, (rate, val, loss) in enumerate(((1, 90, 0.9), (2, 85, 0.1))):
        write_job(tmp_path, number, ["kd=hinton", f"optimizer.lr={rate}"], val, val)
        change(tmp_path / str(number), "student", selected_by="loss", validation={"accuracy": val, "loss": loss})
    write_job(tmp_path, 2, ["kd=none", "optimizer.lr=1"], 80, 80)
    change(tmp_path / "2", "student", selected_by="loss", validation={"accuracy": 80, "loss": 0.5})
    text = write_report(tmp_path)
    assert "By accuracy: the losses under different kd are not one quantity" in text
    assert "Over the same chain without distillation (80.00 (n=1)): +10.00 (n=1)" in text


def test_sentences_say_who_taught_whom_and_what_is_unpaired(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_job(tmp_path, seed, ["kd=none", f"seed={seed}"], 95, 80 + seed)
        write_job(tmp_path, seed + 2, ["kd=dkd", f"seed={seed + 2}"], 90, 82 + seed)
    text = write_report(tmp_path)
    assert "Over the chain's teacher, which did not teach it (94.00 (n=1)): -13.50" in text
    assert "2, unpaired" in text


def test_runs_are_found_in_folders_of_any_name_but_not_twice(tmp_path: Path) -> None:
    for name in ("shared", "export", "logs", "index"):
        write_job(tmp_path / name / "student", 0, ["seed=0"], 90, 80)
    assert len(load(tmp_path)) == 4
    write_job(tmp_path / "sweep", 0, ["seed=0"], 90, 80)
    write_job(tmp_path / "sweep" / "shared", 1, ["seed=0"], 90, 80)  # a stage that its jobs have
    write_job(tmp_path / "sweep" / "0" / "logs", 1, ["seed=0"], 90, 80)
    assert len(load(tmp_path / "sweep")) == 1


def test_what_no_command_line_tells_tells_runs_of_other_seeds_apart(tmp_path: Path, capsys) -> None:
    """An experiment that was edited between two sweeps: its own numbers, or its teacher's, are others."""

    def run(sweep: str, seed: int, *edited: str) -> None:
        common = [f"output_dir={tmp_path / 'outputs'}", "epochs=1", "report=false", "stage.student.guide=teacher"]
        settings = settings_of(*common, "stage.deliver=student", f"seed={seed}", *edited)
        run_chain(settings, tmp_path / sweep / str(seed), ["experiment=mine", f"seed={seed}"])

    for seed in (0, 1):
        run("first", seed)
    run("again", 2)
    for seed in (0, 1):  # each seed starts from weights of its own
        best = tmp_path / "first" / str(seed) / read_run(tmp_path / "first" / str(seed)).stages["student"].checkpoint
        run("started", seed, f"stage.student.start='{best}'")
    assert configurations(load(tmp_path / "started"))["n"].tolist() == [2]
    run("edited", 3, "optimizer.lr=0.1")
    run("taught", 4, "stage.teacher.optimizer.lr=0.1")
    told = {name: load(tmp_path / name) for name in ("first", "again", "edited", "taught")}
    known = {name: {*frame["student_configuration"]} for name, frame in told.items()}
    assert known["first"] == known["again"] and len(known["first"]) == 1
    assert len(set.union(*known.values())) == 3
    assert configurations(load(tmp_path / "first", tmp_path / "again"))["n"].tolist() == [3]
    table = configurations(load(*(tmp_path / name for name in told))).set_index("sweep")
    assert table["n"].to_dict() == {"first": 2, "again": 1, "edited": 1, "taught": 1}
    (tmp_path / "edited" / "3").rename(tmp_path / "first" / "3")
    one_folder = grouped(load(tmp_path / "first"))
    assert sorted(len(group.runs) for group in one_folder) == [1, 2] and {*one_folder[0].values} == {"settings"}
    main([str(tmp_path / name) for name in ("again", "taught", "first")])
    assert "taught has other settings or code than" in capsys.readouterr().out


def test_a_best_of_few_seeds_or_among_equals_is_told_as_such(tmp_path: Path) -> None:
    for number, (kd, seed) in enumerate([("none", 0), ("none", 1), ("dkd", 0), ("dkd", 1), ("rkd", 0)]):
        write_job(tmp_path, number, [f"kd={kd}", f"seed={seed}"], 90, 80 + number)
    text = write_report(tmp_path)
    assert "Best on validation: kd=none " in text and "3 configurations are equal on validation; this one came" in text
    assert configurations(load(tmp_path))["kd"].tolist() == ["none", "dkd", "rkd"]
    assert "Of 1 configurations that were compared, 0 show a gain and 0 a loss; 1 more has one seed" in text
    change(tmp_path / "4", "student", validation={"accuracy": 93})
    assert "It has n=1, others up to n=2: of few seeds the best is easily so by chance." in write_report(tmp_path)


def test_many_equal_configurations_stay_in_the_order_of_the_command_line(tmp_path: Path) -> None:
    for number in range(24):
        write_job(tmp_path, number, [f"optimizer.lr={number}"], 90 + number % 2, 80)
    table = configurations(load(tmp_path))
    assert table["optimizer.lr"].tolist() == [*range(1, 24, 2), *range(0, 24, 2)]
    assert grouped(load(tmp_path))[1].name == f"optimizer.lr={table['optimizer.lr'][0]}"


def test_a_folder_that_holds_sweeps_names_them(tmp_path: Path, capsys) -> None:
    write_job(tmp_path / "all" / "first", 0, ["seed=0"], 90, 80)
    (tmp_path / "all" / "first" / "sweep.json").write_text('{"jobs": {}}')
    for words, said in (
        (["all"], "all: holds no sweep and no run: neither sweep.json nor summary.json; there are sweeps in it: first"),
        (["all/first", "gone"], "gone: no such folder"),
    ):
        with pytest.raises(SystemExit):
            main([str(tmp_path / word) for word in words])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "all" / "first" / "report.html").exists()
