"""Every file that kdx reads, changed in every way: one line with its name, or set aside; never a traceback."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kdx.chain.finished import run_that_stays
from kdx.chain.index import ENTRY_FORMAT, ENTRY_HASH, StageIndex, _hash
from kdx.checkpoint import check_snapshot, load_checkpoint
from kdx.deploy.load import Card, load_model
from kdx.deploy.run_loader import load_data, load_stage
from kdx.errors import KdxError
from kdx.files import MOST_BYTES, hash_path, read_json, write_json
from kdx.report.run import write_run_report
from kdx.report.sweep import write_report
from kdx.results import load
from kdx.sweeps.board import Board
from kdx.sweeps.jobs import Job, finished_before
from tests.conftest import REPO
from tests.faults.toy import run_toy

WORDS = [
    None,
    True,
    -1,
    3,
    10**30,
    1.5,
    -1e300,
    "",
    "x",
    "../../x",
    "a\0b",
    [],
    [None],
    {},
    {"x": [[]]},
    [[1] * 50] * 3,
]
TEXTS = [b"", b"null", b"[]", b"7", b'"x"', b"{}", b"NaN", b'{"epoch": NaN}', b"[1e999]", b"[" * 100_000, b"\xff\xfe{}"]
TEXTS += [b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"9" * 10_000, b"\0" * 100, b'{"jobs": [1]}', b"<html></html>"]


def mutations(value: Any, most: int = 3) -> Iterator[tuple[str, Any]]:
    """Copies of plain values, each with one key or list item replaced by another word, or missing."""
    for path in places(value, most):
        for word in (*WORDS, ...):
            yield (
                ".".join(map(str, path)) + f"={'missing' if word is ... else word!r}"[:40],
                _changed(value, path, word),
            )


def _changed(value: Any, path: list[Any], word: Any) -> Any:
    """A copy of what is on the way to the place; the rest is shared."""
    changed, (key, *rest) = copy.copy(value), path
    if rest:
        changed[key] = _changed(value[key], rest, word)
    elif word is ...:
        del changed[key]
    else:
        changed[key] = word
    return changed


def places(value: Any, most: int) -> Iterator[list[Any]]:
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(min(most, len(value)))
        for key in keys:
            yield [key]
            yield from ([key, *rest] for rest in places(value[key], 1))


def refused(read: Callable[[], Any], named: str) -> bool:
    """Whether it raises one line with that name; any other error is a failure."""
    try:
        read()
    except KdxError as error:
        assert "\n" not in str(error) and named in str(error), error
        return True
    return False


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPO / "tests" / "fixtures" / "version_0_1", tmp_path / "outputs"))


@pytest.mark.filterwarnings("ignore:Attempting to set identical")  # the axes of a figure: scores may all be 3
def test_summaries(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdx.report.run.curves", lambda *_: "")  # a second a page
    monkeypatch.setattr("kdx.report.run.heat_map", lambda *_, **__: "")
    monkeypatch.setattr("kdx.report.run.bars_and_line", lambda *_: "")
    run, path = outputs / "run", outputs / "run" / "summary.json"
    sound = json.loads(path.read_text())
    for stage in (sound["teacher"], sound["student"]):  # a part of each list does
        stage["test"]["confusion_matrix"] = [row[:2] for row in stage["test"]["confusion_matrix"][:2]]
        stage["test"]["per_class"] = {key: values[:2] for key, values in stage["test"]["per_class"].items()}
    sound["class_names"] = sound["class_names"][:2]
    readers = [lambda: write_run_report(run), lambda: run_that_stays(run, [])]
    tried, told = 0, 0
    for what, changed in mutations(sound):
        path.write_text(json.dumps(changed))
        for read in readers:
            told += refused(read, str(run))
            tried += 1
        assert len(load(run)) == 1, what  # a damaged run has a row that says so
        finished_before(Job(0, (), run))
    for text in TEXTS:
        path.write_bytes(text)
        for read in readers:
            told += refused(read, str(run))
            tried += 1
        assert load(run)["status"].tolist() in (["unreadable"], ["open"]), text[:50]
        assert finished_before(Job(0, (), run)) is None
    assert tried > 3000 and told > 2000


def test_sweeps(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdx.report.sweep_pictures.curves", lambda *_: "")
    sweep, path = outputs / "sweep", outputs / "sweep" / "sweep.json"
    sound = json.loads(path.read_text())
    sound["jobs"] = dict(list(sound["jobs"].items())[:2])
    jobs = [Job(number, (), sweep / str(number)) for number in (7, 8)]
    told = 0
    for write, cases in ((lambda x: json.dumps(x).encode(), [x for _, x in mutations(sound)]), (bytes, TEXTS)):
        for changed in cases:
            for read in (lambda: write_report(sweep), lambda: Board(sweep, jobs)):
                path.write_bytes(write(changed))
                told += refused(read, str(sweep))
    assert told > 150


def test_a_damaged_job_does_not_stand_in_the_way_of_the_others(outputs: Path) -> None:
    (outputs / "sweep" / "1" / "summary.json").write_text("null")
    assert "3 of 4 jobs finished" in write_report(outputs / "sweep")
    assert "1/summary.json: not a summary of kdx" in (outputs / "sweep" / "sweep.md").read_text()


def test_index_entries_are_set_aside(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = StageIndex(outputs)
    path = next(path for path in index.folder.glob("*.json") if index.find(path.stem) is not None)
    sound = json.loads(path.read_text())
    del sound[ENTRY_HASH]
    sound["test"] = {key: sound["test"][key] for key in ("accuracy", "auc")}
    aside = path.with_name(path.name + ".damaged")
    for _, changed in mutations(sound):
        write_json(path, changed | {ENTRY_HASH: _hash(ENTRY_FORMAT, changed)})  # of another kdx, not bit rot
        assert (
            index.find(path.stem) is not None or aside.exists() or not Path(outputs / changed["checkpoint"]).is_file()
        )
        aside.unlink(missing_ok=True)
    for text in TEXTS:
        path.write_bytes(text)
        assert index.find(path.stem) is None and aside.read_bytes() == text
        aside.unlink()
    newer = sound | {"of_a_newer_kdx": 1}
    write_json(path, newer | {ENTRY_HASH: _hash(ENTRY_FORMAT, newer)})
    assert index.find(path.stem) is not None


def test_attempts_are_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = StageIndex(tmp_path)
    index.folder.mkdir()
    sound = {"pid": 1, "host": "h", "folder": "run/teacher"}
    texts = [json.dumps(changed).encode() for _, changed in mutations(sound)] + TEXTS
    for text in texts:
        (index.folder / "f.attempt").write_bytes(text)
        caplog.clear()
        with index.claim("f", "teacher", tmp_path / "run", lambda: None) as (earlier, waited):
            assert (earlier is None) == ("it is set aside" in caplog.text) and not waited


def test_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_toy(tmp_path, "epochs=1")
    path = tmp_path / "run" / "teacher" / "checkpoints" / "latest.pth"
    sound = torch.load(path, weights_only=True)
    hash_path(path).unlink()

    def resumable() -> None:
        check_snapshot(path, load_checkpoint(path))

    known = {key: sound[key] for key in ("epoch", "validation", "meta", "progress")}
    told = 0
    for _, changed in mutations(known):
        torch.save({**{key: value for key, value in sound.items() if key not in known}, **changed}, path)
        told += refused(resumable, path.name)
        refused(lambda: load_model(path, network="tests.tiny:wide"), path.name)
    assert told > 250
    for key, word in [(key, word) for key in ("model", "meta", "progress", "epoch") for word in WORDS[:8]]:
        torch.save(sound | {key: torch.ones(3) if word is None else word}, path)
        assert refused(resumable, path.name) or (key, word) == ("epoch", 3)
    torch.save({key: sound[key] for key in ("format", "model", "epoch", "validation", "meta")}, path)
    assert refused(resumable, path.name)  # a copy of a best one: nothing to resume from
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "outputs" / "index")
    run_toy(tmp_path, "epochs=1")
    assert "latest.pth: holds no state of a training" in caplog.text and "set aside" in caplog.text


def test_cards(outputs: Path, tmp_path: Path) -> None:
    content = load_checkpoint(next((outputs / "run/student/checkpoints").glob("best_acc_*.pth")))
    sound = json.loads(Card.of(content["meta"], tmp_path).text())
    where = tmp_path / "student.onnx"
    texts = [json.dumps(changed) for _, changed in mutations(sound, most=2)]
    told = sum(refused(partial(Card.read, text, where), where.name) for text in texts)
    assert told > 250
    bad = [text.decode(errors="surrogateescape") for text in TEXTS]
    shapes = ([1, 100_000, 100_000], [1, 16_384, 16_384], [0, 8, 8], [8, 8])
    bad += [json.dumps(sound | {"image_shape": shape}) for shape in shapes]
    assert all(refused(partial(Card.read, text, where), where.name) for text in bad)
    with pytest.raises(KdxError, match="class_names: 3 names for num_classes=10"):
        Card.read(json.dumps(sound | {"class_names": ["a", "b", "c"]}), where)


def test_configs_that_say_where_images_lie(outputs: Path) -> None:
    stage = load_stage(outputs / "run", "student")
    (path,) = (outputs / "run/student/logs").glob("*_config.json")
    sound = {"config": {"dataset": json.loads(path.read_text())["config"]["dataset"]}}
    told = 0
    for write, cases in ((lambda x: json.dumps(x).encode(), [x for _, x in mutations(sound)]), (bytes, TEXTS)):
        for changed in cases:
            path.write_bytes(write(changed))
            told += refused(lambda: load_data(stage), path.name)
    assert told > 50
    target = {
        "_target_": "kdx.data.sources.load_medmnist",
        "name": "nosuch",
        "size": 28,
        "root": "x",
        "download": False,
    }
    for source in (target, target | {"size": [28]}, target | {"size": 10**9}, target | {"more": 1}, {"_target_": 5}):
        path.write_text(json.dumps({"config": {"dataset": {"source": source}}}))
        assert refused(lambda: load_data(stage), path.name)


HEAD = b"epoch,train_loss,val_loss,val_accuracy\n"


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"\0" * 100, b"\xff\xfe", b"null", b"a,b\n1,2\n", HEAD + b"x,1,1,1\n", HEAD + b"1,1\n"),
        *(HEAD + b"1,1,1,1,1\n", HEAD + b",1,1,1\n", HEAD + b"0,1,1,1\n", HEAD + b"nan,1,1,1\n", HEAD + b"1,1,1,x\n"),
        *(HEAD + b"1e999,1,1,1\n", HEAD + b'1,"1,1,1\n', HEAD + b"1,1,1,\xff\n", HEAD + b"1,1,1," + b"9" * 200_000),
    ],
)
def test_epoch_logs(outputs: Path, text: bytes) -> None:
    (path,) = (outputs / "run/student/logs").glob("*_log.csv")
    path.write_bytes(text)
    assert refused(lambda: write_run_report(outputs / "run"), path.name)


def test_an_epoch_log_may_lack_columns_and_values(outputs: Path) -> None:
    (path,) = (outputs / "run/student/logs").glob("*_log.csv")
    for text in (b"epoch\n1\n", HEAD, HEAD + b"1,,,\n", HEAD + b"1,nan,inf,3\n2,1,1,1\n"):
        path.write_bytes(text)
        assert not refused(lambda: write_run_report(outputs / "run"), path.name)


def test_sizes_and_kinds_of_files(outputs: Path) -> None:
    """Told by their size, before anything is read; a pipe would never end."""
    import os

    path = outputs / "run" / "summary.json"
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(200 * 2**20)
    assert refused(lambda: write_run_report(outputs / "run"), f"at most {MOST_BYTES} are read")
    path.unlink()
    os.mkfifo(path)
    assert refused(lambda: write_run_report(outputs / "run"), path.name)
    path.unlink()
    path.mkdir()
    assert refused(lambda: read_json(path), path.name)
