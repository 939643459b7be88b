"""The report from folders as jobs leave them, and its page in a real browser."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdx.errors import KdxError
from kdx.report.__main__ import main
from kdx.report.html import REPORT, table
from kdx.report.plots import front, intervals
from kdx.report.run import conclusions, write_run_report
from kdx.report.sweep import write_report
from kdx.report.sweep_pictures import brief_names
from kdx.results import configurations, grouped, load_sweep, read_run, swept_keys
from kdx.sweeps import pages


def stage(role: str, val: float, test: float, fingerprint: str) -> dict:
    scores = {"loss": 0.1, "accuracy": test, "precision": test, "recall": test, "f1_score": test, "auc": test / 100}
    return {
        "network": "resnet18",
        "status": "trained" if role == "student" else "reused",
        "fingerprint": fingerprint,
        "checkpoint": f"{role}/checkpoints/best.pth",
        "epoch": 2,
        "parameters": 10,
        "validation": {"accuracy": val},
        "test": scores,
        "seconds": 3.0,
    }


def write_job(
    folder: Path, number: int, overrides: list[str], val: float, test: float, status: str = "finished", data: str = ""
) -> None:
    """A job's record; `data` is the name and the hash of its data set, with a space between."""
    job = folder / str(number)
    (job / "student" / "logs").mkdir(parents=True)
    (job / "student" / "logs" / "resnet18_student_log.csv").write_text(f"epoch,val_accuracy\n1,{val - 5}\n2,{val}\n")
    given = dict(word.partition("=")[::2] for word in overrides)
    method = given.get("stage.student.kd", given.get("kd"))
    alone = method in ("none", "null") or given.get("stage.student.guide") == "null"
    seed = " ".join(word for word in overrides if word.startswith("seed="))
    done = {"teacher": stage("teacher", 95, 94, "t")}
    if status == "finished":
        taught = {"guide": None} if alone else {"guide": "teacher", "guide_fingerprint": "t"}
        done["student"] = stage("student", val, test, f"none{seed}" if alone else f"s{number}") | taught
    plan = [{"role": "teacher", "action": "reuse"}, {"role": "student", "action": "train"}]
    error = "student: loss is nan in epoch 2, step 3" if status == "failed" else None
    told = {"status": status, "error": error, "overrides": overrides, "plan": plan, **done}
    if data:
        told["lineage"] = [{"what": "data", **dict(zip(("name", "hash"), data.split(), strict=True))}]
    (job / "summary.json").write_text(json.dumps(told))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    number = 0
    for temperature in (2, 10):
        for seed in (0, 1):
            overrides = ["kd=hinton", f"kd.temperature={temperature}", "kd.alpha=0.5", f"seed={seed}", "epochs=2"]
            write_job(tmp_path, number, overrides, val=90 + temperature / 2 + seed, test=80 + seed)
            number += 1
    for temperature in (2, 10):  # without distillation both are the same stage
        write_job(
            tmp_path, number, ["kd=none", f"kd.temperature={temperature}", "kd.alpha=0.5", "seed=0", "epochs=2"], 85, 78
        )
        number += 1
    write_job(
        tmp_path, number, ["kd=hinton", "kd.temperature=20", "kd.alpha=0.5", "seed=0", "epochs=2"], 0, 0, "failed"
    )
    return tmp_path


def test_seeds_are_put_together_with_mean_spread_and_n(sweep: Path) -> None:
    frame = load_sweep(sweep)
    assert swept_keys(frame) == ["kd", "kd.temperature", "seed"]
    groups = {tuple(group.values.values()): group for group in grouped(frame)}
    assert list(groups["hinton", 10].scores("test_accuracy")) == [80, 81]
    assert list(groups[("none",)].scores("test_accuracy")) == [78]  # one stage, counted once
    assert ("hinton", 20) not in groups
    table = configurations(frame).set_index(["kd", "kd.temperature"])
    assert table.loc[("hinton", 10), "test_accuracy_mean"] == 80.5 and table.loc[("hinton", 10), "n"] == 2
    assert table.loc[("hinton", 10), "test_accuracy_std"] == pytest.approx(0.7071, abs=1e-4)


def test_best_is_chosen_on_validation_not_on_test(tmp_path: Path) -> None:
    """pitfall(6)"""
    write_job(tmp_path, 0, ["kd.temperature=2"], val=90, test=70)
    write_job(tmp_path, 1, ["kd.temperature=4"], val=80, test=99)
    assert configurations(load_sweep(tmp_path))["kd.temperature"].tolist() == [2, 4]  # the best one first
    write_report(tmp_path)
    assert "Best on validation: kd.temperature=2 " in (tmp_path / "sweep.md").read_text()


def test_report_files_hold_results_gains_and_failures(sweep: Path, capsys) -> None:
    main([str(sweep)])
    printed = capsys.readouterr().out
    assert "6 of 7 jobs finished" in printed and "loss is nan in epoch 2" in printed
    text = (sweep / "sweep.md").read_text()
    assert "Best on validation: kd=hinton kd.temperature=10 with 95.50 ± 0.71 (n=2) validation accuracy" in text
    assert "its test accuracy is 80.50 ± 0.71 (n=2)" in text
    assert "without distillation (78.00 (n=1)): +2.00 (n=1): one seed: no interval, nothing is shown." in text
    assert "Over its teacher (94.00 (n=1)): -13.50" in text
    rows = (sweep / "sweep.csv").read_text().splitlines()
    assert len(rows) == 8 and rows[0].startswith(
        "job,kd,kd.temperature,kd.alpha,seed,epochs,state,seconds,teacher_val_accuracy"
    )
    assert rows[7].split(",")[6] == "failed"


def test_gain_is_told_also_where_distillation_loses(tmp_path: Path) -> None:
    write_job(tmp_path, 0, ["kd=none"], val=90, test=85)
    write_job(tmp_path, 1, ["kd=hinton"], val=80, test=70)
    write_report(tmp_path)
    text = (tmp_path / "sweep.md").read_text()
    assert "Best on validation: kd=none" in text
    assert "without distillation (85.00 (n=1)), of the best distilled one, kd=hinton: -15.00 (n=1)" in text


@pytest.mark.parametrize(
    ("student", "told"),
    [(4, "2.5 times fewer weights"), (10, "as many weights"), (25, "2.5 times as many weights")],
)
def test_a_runs_page_says_how_large_the_student_is_beside_its_teacher(tmp_path: Path, student: int, told: str) -> None:
    write_job(tmp_path, 0, ["seed=0"], val=90, test=80)
    stages = read_run(tmp_path / "0").stages
    stages["student"] = replace(stages["student"], parameters=student, guide="teacher")
    assert conclusions(stages)[-1] == f"That is 85.1 % of the teacher's 94.00 % with {told}."


def test_report_of_a_running_sweep_and_of_no_sweep(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit), pytest.raises(KdxError, match="holds no sweep"):
        main([str(tmp_path)])
    assert "holds no sweep" in capsys.readouterr().err
    jobs = {
        "0": {"overrides": ["seed=0"], "folder": "0", "state": "open"},
        "1": {"overrides": ["seed=1"], "folder": "1", "state": "open"},
    }
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    write_job(tmp_path, 0, ["seed=0"], val=90, test=80)
    write_report(tmp_path)
    text = (tmp_path / "sweep.md").read_text()
    assert "1 of 2 jobs finished, 1 not begun." in text and "Unfinished" not in text


def test_heat_map_of_two_keys_and_a_wrong_one(tmp_path: Path) -> None:
    for number, (temperature, alpha) in enumerate([(2, 0.3), (2, 0.7), (10, 0.3), (10, 0.7)]):
        write_job(tmp_path, number, [f"kd.temperature={temperature}", f"kd.alpha={alpha}"], 90.25 + number, 80)
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "Mean validation accuracy in % over kd.temperature and kd.alpha." in html
    drawn = html[html.index("Mean validation accuracy") :]  # what tempts to choose by test is not drawn
    assert all(f">{90.25 + number:.2f}<" in drawn for number in range(4)) and ">80.00<" not in drawn.split("</svg>")[0]
    assert drawn.index(">2<") < drawn.index(">10<")  # sorted as numbers
    write_report(tmp_path, "kd.alpha", "kd.temperature")
    assert "over kd.alpha and kd.temperature" in (tmp_path / "report.html").read_text()
    with pytest.raises(KdxError, match="seed: not swept here; choose two of kd.temperature, kd.alpha"):
        write_report(tmp_path, "seed")


def test_curves_of_one_configuration_share_a_colour_and_a_name(tmp_path: Path) -> None:
    for number, (share, seed) in enumerate([(0.02, 0), (0.02, 1), (0.05, 0), (0.05, 1)]):
        write_job(tmp_path, number, [f"stage.student.labelled={share}", f"seed={seed}"], 90, 80)
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    drawn = html[html.index("All jobs") :].split("</svg>")[0]
    assert drawn.count(">labelled=0.02<") == drawn.count(">labelled=0.05<") == 1 and "seed" not in drawn
    lines = re.findall(r'<g id="line2d_\d+">\s*<path [^>]*clip-path[^>]*stroke: (#\w+); stroke-width: 1.2', drawn)
    assert lines[0] == lines[1] != lines[2] == lines[3] and len(lines) == 4


def test_differences_are_drawn_with_their_intervals(tmp_path: Path) -> None:
    tests = {"none": (80, 80.5), "hinton": (82, 82.6), "dkd": (80.5, 79.5)}
    for number, (kd, seed) in enumerate((kd, seed) for kd in tests for seed in (0, 1)):
        write_job(tmp_path, number, [f"kd={kd}", f"seed={seed}"], 90, tests[kd][seed])
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    drawn = html[html.index("Gain over no distillation") :].split("</table>")[1].split("</svg>")[0]
    assert drawn.index(">kd=hinton<") < drawn.index(">kd=dkd<") and ">kd=none<" not in drawn  # the largest first
    assert "difference in test accuracy, points" in drawn


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["kd", "stage.student.labelled"], ["kd", "labelled"]),
        (["stage.student.epochs", "stage.teacher.epochs"], ["student.epochs", "teacher.epochs"]),
        (["kd.temperature", "stage.student.kd.temperature"], ["kd.temperature", "student.kd.temperature"]),
    ],
)
def test_names_of_keys_are_as_short_as_can_be_told_apart(keys: list[str], names: list[str]) -> None:
    assert list(brief_names(keys).values()) == names


def test_a_column_of_sentences_wraps_and_stands_left() -> None:
    """Else a long one stands beyond the screen, and with it the short ones, which are set right."""
    sentence = "no effect shown; about 19 seeds would show such a difference"
    page = table("gains", ["kd", "what the seeds show"], [["hinton", "a gain"], ["dkd", sentence]])
    assert page.count('<td class="words">') == 2 and '<th class="words">what the seeds show</th>' in page
    assert '<td class="words">a gain</td>' in page and "<td>hinton</td>" in page and "<th>kd</th>" in page


def test_page_needs_no_network_and_escapes_what_it_shows(tmp_path: Path) -> None:
    write_job(tmp_path, 0, ["model.student=<b>x</b>"], 90, 80)
    write_job(tmp_path, 1, ["model.student=y"], 91, 81)
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "<b>x</b>" not in html and "&lt;b&gt;x&lt;/b&gt;" in html
    links = [url for url in re.findall(r"(?:src|href)=[\"']([^\"']+)", html) if not url.startswith("#")]
    outside = [url for url in links if not re.fullmatch("[0-9]+/(report.html)?", url)]
    assert not outside and "@import" not in html and len(html) < 400_000


def test_what_others_named_is_harmless_in_every_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = '=1+1|<img src=x onerror="alert(1)">\x1b]0;owned\x07\n# Best: mine \u202e'
    write_job(tmp_path, 0, [f"model.student={evil}", "optimizer.lr=-0.5", "@a=1"], 90, 80)
    write_job(tmp_path, 1, ["model.student=y", "optimizer.lr=-1e-3", "@a=@x"], 91, 81)
    write_job(tmp_path, 2, ["model.student=-z", "optimizer.lr=0.5", "@a=2"], 91, 81, "failed")
    summary = tmp_path / "2" / "summary.json"
    told = json.loads(summary.read_text())
    summary.write_text(json.dumps(told | {"error": evil}))
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    text, html = (tmp_path / "sweep.md").read_text(), (tmp_path / "report.html").read_text()
    for shown in (printed, text, html):
        assert not set("\x1b\x07\u202e") & set(shown) and "\\x1b" in shown
    assert "<img src" not in html.split("Feature maps")[0] and "<" not in text
    assert not any(line.startswith("# Best") for shown in (printed, text) for line in shown.splitlines())
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} <= {12, 9, 5, 11, 10}  # no cell more
    rows = list(csv.reader(io.StringIO((tmp_path / "sweep.csv").read_text(), newline="")))
    cells = {cell for row in rows for cell in row}
    assert {"-0.5", "-0.001", "'-z", "'@x", "'@a"} <= cells and sum(cell.startswith("'=1+1|") for cell in cells) >= 1
    assert not any(re.match("[=@\t\r]|[+-](?![0-9.])", cell) for cell in cells)


def test_keys_of_the_heat_map_are_for_sweeps(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["--rows", "kd.temperature"], ["rows=kd.temperature"], ["--rows=kd.temperature"]):
        main([str(sweep), *line])
        assert "over kd.temperature and seed" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(sweep / "0"), "rows=kd.temperature"])
    assert "a run; rows=, columns=, costs= and jobs= are for the folder of a sweep" in capsys.readouterr().err


def test_page_opens_sorts_and_filters_in_a_browser(
    sweep: Path, browse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdx.report.html.MANY_ROWS", 5)
    write_report(sweep)

    def first_column(html: str) -> list[str]:
        body = html[html.index('id="jobs"') :].split("<tbody>")[1].split("</tbody>")[0]
        return re.findall(r'<tr(?: hidden="")?><td><a href="[0-9]/">(.*?)</a></td>', body)

    assert first_column(browse(sweep / "report.html")) == ["0", "1", "2", "3", "4", "5", "6"]
    assert first_column(browse(sweep / "report.html", "#sort=jobs,0,down")) == ["6", "5", "4", "3", "2", "1", "0"]
    by_temperature = first_column(browse(sweep / "report.html", "#sort=jobs,2,up"))
    shown = browse(sweep / "report.html", "#sort=jobs,0,down;jobs=kd%3Dhinton%20finished%20kd.temperature%3D2")
    hidden = re.findall(r'<tr hidden=""><td><a href="[0-9]/">(.*?)</a>', shown)
    assert sorted(hidden) == ["2", "3", "4", "5", "6"] and first_column(shown) == ["6", "5", "4", "3", "2", "1", "0"]
    assert by_temperature[-1] == "6" and set(by_temperature[:3]) == {"0", "1", "4"}  # 2 < 10 < 20 as numbers
    cut_off = browse(sweep / "report.html", "#sort=jobs,0,down;x=%;jobs=%22no such words%22")
    assert first_column(cut_off) == ["6", "5", "4", "3", "2", "1", "0"] and cut_off.count('<tr hidden="">') == 7


def test_different_names_stay_different_however_long() -> None:
    ends = ("small.stage.student.labelled=0.1", "large.stage.student.labelled=0.1")
    names = [f"kd=dkd model.student=my_package.networks:{end}" for end in ends]
    drawn = intervals([(name, 1.0, 0.5, 1.5, True) for name in names], "x")
    assert all(end.split(".")[0] in drawn for end in ends)
    assert "…" in intervals([(names[0], 1.0, 0.5, 1.5, True), ("kd=none", 1.0, 0.5, 1.5, True)], "x")


def test_labels_of_a_logarithmic_axis_stand_inside_of_it() -> None:
    points = [(name, cost, 90.0, False) for name, cost in (("least", 1.0), ("third", 30.0), ("most", 100.0))]
    anchors = re.findall(r"text-anchor: (\w+)[^>]*>(least|third|most)<", front(points, ("cost", "accuracy")))
    assert anchors == [("start", "least"), ("end", "third"), ("end", "most")]


def test_the_page_of_a_run_that_failed_says_so_first(tmp_path: Path) -> None:
    write_job(tmp_path, 0, ["seed=0"], 90, 80, "failed")
    told = write_run_report(tmp_path / "0")
    said = "This run is not finished: failed, student: loss is nan in epoch 2, step 3."
    assert told.startswith(said) and said in (tmp_path / "0" / REPORT).read_text()


def test_a_damaged_log_of_one_job_costs_the_sweep_its_curve_only(tmp_path: Path, caplog) -> None:
    for number in (0, 1):
        write_job(tmp_path, number, [f"seed={number}"], 90, 80)
    (log,) = (tmp_path / "1" / "student" / "logs").glob("*.csv")
    log.write_text("epoch,val_accuracy\n1,\x00")
    assert "2 of 2 jobs finished" in write_report(tmp_path) and "drawn without its curve" in caplog.text


def test_a_running_sweep_writes_its_page_and_those_of_its_jobs_again(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(pages, "write_run_report", lambda folder: written.append(folder) or (folder / REPORT).touch())
    monkeypatch.setattr(pages, "end_with_parent", lambda: None)
    monkeypatch.setattr(pages.os, "nice", lambda by: None)
    monkeypatch.setattr(pages, "time", SimpleNamespace(monotonic=lambda: 0.0))  # however long drawing takes here
    waits: list[float] = []

    class Over:
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            return len(waits) > 2  # the second page leads to those of the jobs

    pages._keep_written(sweep, Over())  # type: ignore[arg-type]
    html = (sweep / REPORT).read_text()
    assert '<meta http-equiv="refresh" content="15">' in html and "The sweep runs" in html and waits[0] == 15
    assert [folder.name for folder in written] == ["0", "1", "2", "3", "4", "5"]  # once each, of those that finished
    assert '<a href="0/report.html">0</a>' in html and '<a href="6/">6</a>' in html
    write_report(sweep)
    assert "refresh" not in (sweep / REPORT).read_text().split("</head>")[0]
    (sweep / "6" / "summary.json").write_text("{}")
    (sweep / "sweep.json").write_text("[")
    waits.clear()
    pages._keep_written(sweep, Over())  # type: ignore[arg-type]  # told, not raised: the sweep goes on
