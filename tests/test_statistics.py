"""What may be claimed of a difference: intervals, corrections, seeds needed; and which configurations are compared."""

import csv
import json
import math
import re
from pathlib import Path

import pytest
from scipy.stats import ttest_ind, ttest_rel

from kdx.report.__main__ import main
from kdx.report.gains import compare, gains
from kdx.report.statistics import (
    Difference,
    corrected,
    paired_difference,
    seeds_needed,
    unpaired_difference,
    wilson,
)
from kdx.report.sweep import write_report
from kdx.results import configurations, grouped, load, load_sweep
from tests.test_report import write_job


def test_paired_and_unpaired_differences_are_those_of_the_t_tests() -> None:
    one, other = [80.1, 81.5, 79.9, 82.0], [79.0, 80.2, 79.5, 80.1]
    found, known = paired_difference(one, other), ttest_rel(one, other)
    bounds = known.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((bounds.low, bounds.high, known.pvalue))
    assert found.mean == pytest.approx(1.175) and found.n == 4 and found.shown
    loose, known = unpaired_difference(one, other[:3]), ttest_ind(one, other[:3], equal_var=False)
    assert (loose.p, loose.n, loose.paired) == (pytest.approx(known.pvalue), 3, False)
    assert loose.low == pytest.approx(known.confidence_interval(0.95).low) and not loose.shown


@pytest.mark.parametrize("differences", [[0.5], [0.3, 0.1 + 0.2], [1.0, 1.00001, 1.0], [0.0, 0.0]])
def test_one_seed_and_equal_differences_have_no_interval(differences: list[float]) -> None:
    found = paired_difference([90 + d for d in differences], [90.0] * len(differences))
    assert found.low is None and found.p is None and not found.shown and found.seeds_needed is None
    assert unpaired_difference([1.0, 1.0], [0.5, 0.5]).low is None


def test_holm_wilson_and_seeds_needed_are_those_of_the_textbooks() -> None:
    given = [Difference(1, 0, 3, p=p) for p in (0.01, 0.04, 0.03, 0.005)] + [Difference(1, 0, 1)]
    assert [d.corrected and round(d.corrected, 4) for d in corrected(given)] == [0.03, 0.06, 0.06, 0.02, None]
    assert corrected(given)[0].family == 4  # one seed is no test
    assert wilson(0, 10) == pytest.approx((0, 27.7533), abs=1e-3)
    assert wilson(100 * 81 / 263, 263) == pytest.approx((25.53, 36.62), abs=1e-2)  # Newcombe 1998, table I
    assert [seeds_needed(d, 1.0) for d in (1.0, 0.5, 0.2, 100.0)] == [10, 34, 199, 2]  # Cohen's d, power 0.8
    assert seeds_needed(1.0, 1.0, tests=10) > 10 and seeds_needed(0.001, 1.0) is None and seeds_needed(0, 1) is None


def test_an_interval_without_zero_shows_nothing_once_many_were_compared() -> None:
    found = paired_difference([81.0, 81.5, 82.2, 80.9], [80.0] * 4)
    (lone,) = corrected([found])
    many = corrected([found] * 10)[0]
    assert lone.shown and not many.shown and not many.holds_zero
    assert many.seeds_needed > lone.seeds_needed


def jobs(folder: Path, *told: tuple[str, list[float]]) -> Path:
    """A sweep with a job for each test accuracy, its seed the position; validation accuracy is the test's less 1."""
    number = 0
    for overrides, accuracies in told:
        for seed, accuracy in enumerate(accuracies):
            status = "failed" if math.isnan(accuracy) else "finished"
            words = [*overrides.split(), f"seed={seed}"]
            write_job(folder, number, words, 0 if status == "failed" else accuracy - 1, accuracy, status)
            number += 1
    return folder


NAN = math.nan  # a failed job
WELL = [80.0, 81.0, 79.0, 80.5]
LATE = [NAN, NAN, 79.0, 80.5]


@pytest.mark.parametrize(
    ("told", "phrases"),
    [
        ([("kd=none", WELL), ("kd=dkd", [82.1, 82.9, 81.2, 82.4])], [": +2.03 (95 % interval +1.79 to +2.26","n=4, p=0.0001): a gain"]),
        ([("kd=none", WELL), ("kd=dkd", [80.1, 82.9, 78.2, 82.4])], ["n=4, p=0.3342): no effect shown; about 26 seeds would"]),
        ([("kd=none", WELL), ("kd=dkd", WELL)], ["+0.00 (n=4): no effect shown: equal"]),
        ([("kd=none", WELL), ("kd=dkd", [81.0, 82.0, 80.0, 81.5])], ["+1.00 (n=4): the same difference for all seeds: no"]),
        ([("kd=none", LATE), ("kd=dkd", [82.1, 82.9, 81.2, 82.4])], [": +2.05 (95 % interval", "n=2, p=0.0"]),
        ([("kd=none", LATE), ("kd=dkd", [82.1, 82.9])], [": +2.75 (95 % interval", "n=2, no seeds in common"]),
        ([("kd=none", [NAN, 79.0]), ("kd=dkd", [82.1, NAN])], [": +3.10 (n=1, no seeds in common): one seed"]),
        ([("kd=none", [NAN, NAN]), ("kd=dkd", WELL)], ["whether distillation helps cannot be told from it"]),
        ([("kd=none", [80.0]), ("kd=dkd", [90.0])], ["+10.00 (n=1): one seed: no interval, nothing is shown"]),
        ([("kd=dkd", WELL), ("kd=dist", WELL)], ["helps cannot be told", "| dist | kd=dkd | 4 |", "Difference to the first"]),
        ([("kd=dkd", WELL)], ["whether distillation helps cannot be told from it"]),
        ([("optimizer.lr=1", WELL), ("optimizer.lr=2", WELL)], ["Difference to the first configuration"]),
        ([("kd=none", [NAN]), ("kd=dkd", [NAN])], ["0 of 2 jobs finished"]),
        (
            [("kd=none stage.student.labelled=0.1", [60.0, 61.0]), ("kd=dkd stage.student.labelled=0.1", [65.0, 66.5])]
            + [("kd=none stage.student.labelled=1.0", WELL), ("kd=dkd stage.student.labelled=1.0", [80.0, 81.2, 79.1, 80.1])]
            + [("kd=dkd stage.student.labelled=0.5", WELL)],
            [
                "| dkd | 0.1 | kd=none | 2 | 65.75 | 60.50 | +5.25 | +2.07 to +8.43 | 0.0606 | a gain taken alone, not shown among 2 comparisons; about 3 seeds would show it |",
                "| dkd | 1 | kd=none | 4 | 80.10 | 80.12 | -0.03 | -0.44 to +0.39 | 0.8614 |",
                "Of 2 configurations that were compared, 0 show a gain and 0 a loss.",
                "| dkd | 0.5 | - | 0 | 80.12 | - | - | - | - | nothing to compare it with |",
                "No finished job is as kd=dkd stage.student.labelled=0.5 but without distillation",
            ],
        ),
        (
            [("stage.student.kd=none kd.alpha=1", WELL), ("stage.student.kd=none kd.alpha=2", WELL)]
            + [(f"stage.student.kd=hinton kd.alpha={a}", [81.0, 81.9, 80.2, 81.4]) for a in (1, 2)],
            ["| hinton | 1 | stage.student.kd=none | 4 |", "| hinton | 2 | stage.student.kd=none | 4 |"],
        ),
    ],
)  # fmt: skip
def test_what_a_sweep_may_claim(
    tmp_path: Path, told: list, phrases: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdx.report.sweep_pictures.curves", lambda *_: "")
    monkeypatch.setattr("kdx.report.sweep_pictures.heat_map", lambda *_: "")
    printed = write_report(jobs(tmp_path, *told))
    text = (tmp_path / "sweep.md").read_text()
    assert [phrase for phrase in phrases if phrase not in text] == []
    assert printed.count("\n") > 5


def test_seeds_that_come_twice_count_once_and_shared_stages_are_one_answer(tmp_path: Path) -> None:
    jobs(tmp_path / "a", ("kd=none", WELL), ("kd=dkd", WELL), ("kd=dkd", [82.0, 81.0, 80.0, 83.0]))
    (comparison,) = compare(grouped(load_sweep(tmp_path / "a")))
    assert [comparison.difference] == corrected([paired_difference([81.0, 81.0, 79.5, 81.75], WELL)])  # a seed's mean
    for number in range(3):  # seeds that change nothing: every job took the same two stages
        write_job(tmp_path / "b", number, ["kd=none", f"seed={number}"], 80, 80)
        write_job(tmp_path / "b", number + 3, ["kd=dkd", f"seed={number}"], 81, 81)
    for path in (tmp_path / "b").glob("*/summary.json"):
        path.write_text(re.sub('"(noneseed=|s)[0-9]"', r'"\1"', path.read_text()))
    (comparison,) = compare(grouped(load_sweep(tmp_path / "b")))
    assert comparison.difference == Difference(81.0, 80.0, 1)


def select_by_auc(folder: Path) -> None:
    for path in folder.glob("*/summary.json"):
        told = json.loads(path.read_text())
        if "student" in told:
            told["student"] |= {"selected_by": "auc"}
            told["student"]["validation"] |= {"auc": told["student"]["test"]["auc"] + 0.00004}
            path.write_text(json.dumps(told))
    for path in folder.glob("*/student/logs/*.csv"):
        path.write_text("epoch,val_accuracy,val_auc\n1,55.5,0.7\n2,66.6,0.8\n")


def test_where_the_area_selects_the_gain_is_in_area_with_four_decimals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list = []
    monkeypatch.setattr("kdx.report.sweep_pictures.curves", lambda lines, *names: drawn.append((lines, names)) or "")
    jobs(tmp_path, ("kd=none", WELL), ("kd=dkd", [82.1, 82.9, 81.2, 82.4]))
    select_by_auc(tmp_path)
    write_report(tmp_path)
    text = (tmp_path / "sweep.md").read_text()
    assert (
        "with 0.8215 ± 0.0071 (n=4) validation AUC; its test accuracy is 82.15 ± 0.71 (n=4), its test AUC 0.8215"
        in text
    )
    assert "test AUC: +0.0202 (95 % interval +0.0179 to +0.0226" in text
    assert "| 0 | none | 0 | finished | 0.8000 | 79.00 | 80.00 |" in text
    ((lines, names),) = drawn
    assert lines[0] == ("kd=none", [(1, 0.7), (2, 0.8)]) and names == ("epoch", "validation AUC")


def test_csv_and_frame_agree_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdx.report.sweep_pictures.curves", lambda *_: "")
    jobs(tmp_path, ("kd=none", WELL), ("kd=dkd", [82.1, 82.9, 81.2, 82.4]))
    for path in tmp_path.glob("*/summary.json"):
        told = json.loads(path.read_text())
        told["student"]["test"]["num_samples"] = 200
        path.write_text(json.dumps(told))
    write_report(tmp_path)
    with open(tmp_path / "sweep.csv") as file:
        rows = list(csv.DictReader(file))
    (row,) = gains(load(tmp_path)).to_dict("records")
    gained = [float(one["gain"]) for one in rows if one["gain"]]
    assert (
        len(gained) == 4
        and paired_difference(gained, [0.0] * 4).low == pytest.approx(row["low"])
        and row["against"] == "kd=none"
    )
    assert (row["n"], row["shown"], row["seeds_needed"]) == (4, True, None) and row["p_holm"] == row["p"]
    text = (tmp_path / "sweep.md").read_text()
    assert (
        f"80.12 | {row['difference']:+.2f} | {row['low']:+.2f} to {row['high']:+.2f} | {row['p_holm']:.4f} | a gain |"
        in text
    )
    low, high = wilson(80.0, 200)
    assert (float(rows[0]["student_test_accuracy_low"]), float(rows[0]["student_test_accuracy_high"])) == (low, high)
    assert f"| 80.00 | {low:.2f} to {high:.2f} |" in text and gains(load(tmp_path / "0")).empty


def test_all_tables_round_a_mean_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdx.report.sweep_pictures.curves", lambda *_: "")
    tie = [81.37, 81.83, 82.0, 81.34]  # the mean is 81.635 in decimals; added up one by one it comes out below
    write_report(jobs(tmp_path, ("kd=none", WELL), ("kd=dist", tie)))
    text = (tmp_path / "sweep.md").read_text()
    (gain,) = re.findall(r"\| dist \| kd=none \| 4 \| (\S+) ", text)
    assert gain == "81.64" and f"{configurations(load(tmp_path))['test_accuracy_mean'].max():.2f}" == gain
    assert f"| {gain} ± " in text and "81.63" not in text


def compared(capsys: pytest.CaptureFixture[str], *folders: Path) -> str:
    main([str(folder) for folder in folders])
    return capsys.readouterr().out.split("Compared with ")[1]


def test_folders_are_compared_by_what_both_have_else_by_their_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kdx.report.sweep_pictures.curves", lambda *_: "")
    monkeypatch.setattr("kdx.report.run.curves", lambda *_: "")
    better = [accuracy + gain for accuracy, gain in zip(WELL, (2.0, 2.2, 1.9, 2.1), strict=True)]
    jobs(tmp_path / "a", ("kd=none", WELL), ("kd=dkd kd.alpha=1", WELL))
    jobs(tmp_path / "b", ("kd=none optimizer.lr=1", better), ("kd=dkd kd.alpha=1 optimizer.lr=1", WELL))
    jobs(tmp_path / "c", ("kd=dist", better[:2]))
    said = compared(capsys, tmp_path / "a", tmp_path / "b")
    (none,) = [re.split("  +", line) for line in said.splitlines() if line.startswith(str(tmp_path / "b  kd=none"))]
    assert none[3:7] == ["4", "82.17", "80.12", "+2.05"] and none[-1] == "a gain"
    assert said.count("no effect shown: equal") == 1 and "b differs in optimizer.lr=1 (was -)." in said
    said = compared(capsys, tmp_path / "a", tmp_path / "c")  # dist is nowhere in a: against its best on validation
    assert "the one configuration  kd=none" in said.replace("kd.alpha", "") and "+2.10" in said
    said = compared(capsys, tmp_path / "a" / "0", tmp_path / "c" / "0", tmp_path / "b" / "5")
    assert said.count("one seed: no interval") == 2 and "NOT THE SAME DATA" not in said
    path = tmp_path / "c" / "0" / "summary.json"
    told = json.loads(path.read_text())
    told["student"]["test"]["num_samples"] = 200
    path.write_text(json.dumps(told | {"lineage": [{"what": "data", "name": "digits", "hash": "abc"}]}))
    said = compared(capsys, tmp_path / "a" / "0", tmp_path / "c" / "0")
    assert "NOT THE SAME DATA" not in said  # an older record tells no hash
    path = tmp_path / "a" / "0" / "summary.json"
    lineage = [{"what": "data", "name": "digits", "hash": "xyz"}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lineage": lineage}))
    said = compared(capsys, tmp_path / "a" / "0", tmp_path / "c" / "0")
    assert "NOT THE SAME DATA" in said and "digits abc" in said and "82.00 % of 200 test images, 95 % interval" in said
    jobs(tmp_path / "d", ("kd=none", [NAN]))
    with pytest.raises(SystemExit):
        main([str(tmp_path / "a"), str(tmp_path / "d")])
    assert "d: nothing to compare: no run has finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key", ["dataset.cache_dir", "kd.cache_logits", "stage.student.kd.cache_logits", "log_interval"]
)
def test_a_key_that_changes_no_result_tells_no_configurations_apart(tmp_path: Path, key: str) -> None:
    jobs(tmp_path, ("kd=none", WELL[:2]), (f"kd=dkd {key}=1", [82.0, 83.1]), (f"kd=dist {key}=2", [81.0, 82.1]))
    groups = grouped(load(tmp_path))
    assert [group.name for group in groups] == ["kd=none", "kd=dkd", "kd=dist"]
    assert [found.n for found in gains(load(tmp_path)).itertuples()] == [2, 2]


def test_equal_differences_count_among_the_comparisons() -> None:
    found = paired_difference([82.0, 83.04], [80.0, 81.0])
    equal = [paired_difference([79.0, 80.0], [80.0, 81.0])] * 9
    assert found.shown and found.p == pytest.approx(0.0063, abs=1e-4)
    among = corrected([found, *equal])[0]
    assert among.family == 10 and among.corrected == pytest.approx(10 * found.p) and not among.shown


def test_a_stage_that_several_seeds_share_is_no_arm_of_several(tmp_path: Path) -> None:
    for number in range(3):
        write_job(tmp_path, number, ["kd=none", f"seed={number}"], 80, 80)
        write_job(tmp_path, number + 3, ["kd=dkd", f"seed={number + 3}"], 85, 85 + number / 10)
    for path in tmp_path.glob("*/summary.json"):
        path.write_text(re.sub('"noneseed=[0-9]"', '"none"', path.read_text()))
    (comparison,) = compare(grouped(load_sweep(tmp_path)))
    found = comparison.difference
    assert (found.n, found.p, found.low, found.shown, found.paired) == (1, None, None, False, False)
    assert found.mean == pytest.approx(5.1)


@pytest.mark.parametrize(
    "alone", ["stage.student.guide=null kd=dkd kd.alpha=1", "stage.student.guide=null kd.alpha=1", "kd=none stage.student.kd=null"]
)  # fmt: skip
def test_who_has_no_teacher_is_the_baseline_whatever_the_method_is_called(tmp_path: Path, alone: str) -> None:
    taught = alone.replace("guide=null", "guide=teacher").replace("kd=null", "kd=dkd")
    jobs(tmp_path, (alone, WELL), (taught, [82.1, 82.9, 81.2, 82.4]))
    (comparison,) = compare(grouped(load_sweep(tmp_path)))
    assert not comparison.reference.distilled and comparison.difference.mean == pytest.approx(2.025)


def test_a_student_alone_that_starts_from_a_distilled_one_is_another_for_other_numbers(tmp_path: Path) -> None:
    for number, (alpha, seed) in enumerate((alpha, seed) for alpha in (0.1, 0.9) for seed in (0, 1, 2)):
        words = ["kd=none", "stage.student.start=assistant", f"stage.assistant.kd.alpha={alpha}", f"seed={seed}"]
        write_job(tmp_path, number, words, 80, 80 + 10 * alpha + seed)
        path = tmp_path / str(number) / "summary.json"
        path.write_text(path.read_text().replace(f'"noneseed={seed}"', f'"s{number}"'))
    assert [(list(group.values.values()), len(group.runs)) for group in grouped(load_sweep(tmp_path))] == [
        ([0.1], 3),
        ([0.9], 3),
    ]


@pytest.mark.parametrize(
    ("alone", "taught", "compared"),
    [
        ("digits a", "digits a", True),
        ("digits a", "digits b", False),  # the file was replaced between
        ("digits a", "breast b", False),
        ("digits a", "", True),  # an older record tells no hash
    ],
)
def test_scores_on_other_data_are_not_compared(tmp_path: Path, alone: str, taught: str, compared: bool) -> None:
    for seed in range(3):
        write_job(tmp_path, seed, ["kd=none", f"seed={seed}"], 80, 80 + seed / 10, data=alone)
        write_job(tmp_path, seed + 3, ["kd=dkd", f"seed={seed}"], 90, 90 + seed / 7, data=taught)
    (comparison,) = compare(grouped(load_sweep(tmp_path)))
    assert (comparison.difference is not None) == compared
    write_report(tmp_path)
    text, rows = (tmp_path / "sweep.md").read_text(), csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines())
    assert ("not compared: other data" in text) != compared
    assert [bool(row["gain"]) for row in rows] == [False] * 3 + [compared] * 3
    assert ("nothing is best among different data sets" in text) != compared


def test_data_may_differ_by_seed_by_a_key_of_the_data_and_by_a_second_run(tmp_path: Path) -> None:
    for seed in range(2):  # a user's own data set that is another for every seed
        write_job(tmp_path / "a", seed, ["kd=none", f"seed={seed}"], 80, 80 + seed, data=f"own {seed}")
        write_job(tmp_path / "a", seed + 2, ["kd=dkd", f"seed={seed}"], 90, 90 + seed / 7, data=f"own {seed}")
        for size in (32, 64):
            words = [f"dataset.size={size}", f"seed={seed}"]
            write_job(tmp_path / "b", seed + size, words, 90, 80 + seed, data=f"own {size}")
        for changed in (0, 1):
            write_job(
                tmp_path / f"c{changed}", seed, ["kd=dkd", f"seed={seed}"], 9, 90 + changed, data=f"own {changed}"
            )
    for name in "ab":
        (comparison,) = compare(grouped(load_sweep(tmp_path / name)))
        assert comparison.difference.n == 2, name
    both = grouped(load(tmp_path / "c0", tmp_path / "c1"))
    assert [(group.values["data_hash"], len(group.runs)) for group in both] == [("0", 2), ("1", 2)]
    assert [comparison.difference for comparison in compare(both)] == [None]


def test_the_csv_has_no_gain_where_nothing_is_without_distillation(tmp_path: Path) -> None:
    jobs(tmp_path, ("kd=hinton", WELL), ("kd=dkd", [82.1, 82.9, 81.2, 82.4]))
    write_report(tmp_path)
    assert {row["gain"] for row in csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines())} == {""}
    (row,) = gains(load(tmp_path)).to_dict("records")
    assert row["kd"] == "dkd" and row["difference"] == pytest.approx(2.025)  # of the two, told apart by name


def test_a_sentence_states_the_scores_that_it_compares(tmp_path: Path) -> None:
    jobs(tmp_path, ("kd=none", [80.0, 81.0, 82.0]), ("kd=dkd", [82.0, NAN, NAN]))
    write_report(tmp_path)
    assert "Over the same chain without distillation (80.00): +2.00 (n=1)" in (tmp_path / "sweep.md").read_text()


def test_frames_of_little_have_their_columns(tmp_path: Path) -> None:
    jobs(tmp_path, ("kd=dkd", WELL))
    assert [*gains(load(tmp_path))] == [
        *("against", "score", "n", "paired", "difference", "low", "high", "p", "p_holm", "shown", "seeds_needed")
    ]
