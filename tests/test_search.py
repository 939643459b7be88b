"""What a search proposes, and that it is one search at a time."""

from pathlib import Path
from typing import Any

import pytest

from kdx.chain.index import own_folder
from kdx.compose import compose_line
from kdx.config.schema import SearchSchema
from kdx.errors import KdxError
from kdx.report.sweep import write_report
from kdx.run import CONF
from kdx.search import PRUNED, _open_study, _override, _propose, _Trials, read_search, search
from kdx.sweeps.jobs import Job, JobEnd
from tests.conftest import TINY, settings_of
from tests.test_report import write_job

SPACE = {
    "kd.temperature": {"low": 1.0, "high": 10.0, "log": True},
    "optimizer.weight_decay": {"low": 0.0, "high": 1e-6},
}


def proposed(folder: Path, trials: int) -> list[tuple[Any, ...]]:
    """What a search that starts, or goes on, proposes; its trials end well."""
    study = _open_study(SearchSchema(name="one"), folder, 42, "accuracy")
    found = []
    for _ in range(trials):
        trial = study.ask()
        found.append(tuple(_propose(trial, key, space) for key, space in SPACE.items()))
        study.tell(trial, 0.5)
        assert found[-1] == tuple(study.trials[-1].params.values())  # to the last digit
    return found


def test_a_search_that_goes_on_tries_other_values_and_the_same_start_the_same_ones(tmp_path: Path) -> None:
    places = [tmp_path / name for name in "ab"]
    for place in places:
        place.mkdir()
    whole, parts = proposed(places[0], 3), proposed(places[1], 3)
    assert whole == parts
    parts += proposed(places[1], 3) + proposed(places[1], 3)
    assert len(set(parts)) == 9 and all(0 < decay < 1e-6 for _, decay in parts)


def searched(space: str, *overrides: str) -> SearchSchema:
    line = [*TINY, "experiment=search_kd", "~search.space", f"+search.space={space}", *overrides]
    return read_search(compose_line(CONF, line)[0])


def test_bounds_are_of_the_keys_kind_and_a_stages_own_keys_are_known() -> None:
    whole = searched("{kd.alpha:{low:0,high:1},batch_size:{low:8,high:16}}").space
    assert [type(bound) for space in whole.values() for bound in (space["low"], space["high"])] == [
        *(float, float, int, int)
    ]
    for key in ("stage.student.optimizer.lr", "stage.student.kd.temperature", "stage.student.epochs"):
        assert [*searched(f"{{{key}:{{low:1,high:2}}}}").space] == [key]
    with pytest.raises(KdxError, match="stage.student.optimizer.lrr: no such key; did you mean '(?!search)"):
        searched("{stage.student.optimizer.lrr:{low:1,high:2}}")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "x=null"),
        (True, "x=True"),
        (0.5, "x=0.5"),
        ("kdx.thin:resnet8", "x=kdx.thin:resnet8"),
        ("[crop,flip]", "x=[crop,flip]"),
        ("crop, flip", "x='crop, flip'"),
    ],
)
def test_a_choice_is_what_it_says_on_the_command_line(value: Any, told: str) -> None:
    assert _override("x", value) == told
    (config, _, _) = compose_line(CONF, [*TINY, "+x=1", told])
    assert config.x == (["crop", "flip"] if value == "[crop,flip]" else value)


def test_a_search_that_runs_keeps_another_of_its_name_out(tmp_path: Path) -> None:
    with own_folder(tmp_path / "search" / "one"):
        with pytest.raises(KdxError, match="one: another search is at work in this folder; choose another search.name"):
            search(SearchSchema(name="one"), settings_of(f"output_dir={tmp_path}"), None, [])  # type: ignore[arg-type]
    assert not (tmp_path / "search" / "one" / "study.db").exists()


def test_a_trial_that_falls_behind_is_pruned_and_the_report_says_so(tmp_path: Path) -> None:
    """The seventh of a study whose trials before reached more; the pruner looks at the log of its last stage."""
    requested = SearchSchema(name="one", space=SPACE)
    study = _open_study(requested, tmp_path, 42, "accuracy")
    trials = _Trials(study, requested, tmp_path, [], "student", "accuracy")

    class Jobs:
        stopping = False

        def run(self, job: Job, give_up: Any) -> JobEnd:
            reached = 50 if job.number == 6 else 90
            write_job(
                tmp_path, job.number, list(job.overrides), reached, reached, "stopped" if reached == 50 else "finished"
            )
            reason = give_up()
            return (
                JobEnd("failed", 1.0, reason=reason)
                if reason
                else JobEnd("finished", 1.0, value=reached, selected_by="accuracy")
            )

    ends = [trials.run(Jobs(), 0) for _ in range(7)]  # type: ignore[arg-type]
    assert [end.how for end in ends if end][-1] == PRUNED
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 6 + ["PRUNED"]
    text = write_report(tmp_path)
    assert "6 of 7 jobs finished" in text and "pruned  others were better after as many epochs" in text
