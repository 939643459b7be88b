import os
import pickle
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdx.checkpoint import check_metadata, load_checkpoint, load_weights, remove_checkpoint, save_checkpoint
from kdx.errors import KdxError
from kdx.files import write_atomic, write_json
from tests import tiny


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "latest.pth"
    save_checkpoint(path, {"model": tiny.network(3, 1).state_dict(), "epoch": 1, "meta": {"network": "tiny"}})
    return path


def test_round_trip(saved: Path) -> None:
    content = load_checkpoint(saved)
    assert content["epoch"] == 1 and content["meta"] == {"network": "tiny"}
    load_weights(tiny.network(3, 1), content, saved)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["latest.pth", "latest.pth.sha256"]


def test_every_flipped_bit_and_truncation_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        saved.write_bytes(damaged)
        with pytest.raises(KdxError, match="latest.pth: damaged"):
            load_checkpoint(saved)
    for length in (0, 1, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(KdxError, match="latest.pth: damaged"):
            load_checkpoint(saved)


def test_truncated_file_without_checksum_is_one_clear_error(saved: Path) -> None:
    (saved.parent / "latest.pth.sha256").unlink()
    content = saved.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(KdxError, match="not a readable checkpoint"):
            load_checkpoint(saved)


def test_crash_between_checksum_and_file_leaves_the_old_one_readable(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def crash_on_the_second(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        write_atomic(path, content)

    monkeypatch.setattr("kdx.files.write_atomic", crash_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, {"model": {}, "epoch": 2})
    assert load_checkpoint(saved)["epoch"] == 1


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("form", ["zip", "raw pickle", "legacy"])
def test_malicious_checkpoint_runs_nothing(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pitfall(5): weights_only whatever the environment says."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, canary = tmp_path / "evil.pth", tmp_path / "canary"
    if form == "raw pickle":
        path.write_bytes(pickle.dumps({"model": Bomb(canary)}))
    else:
        torch.save({"format": 1, "model": {"x": Bomb(canary)}}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(KdxError, match="evil.pth"):
        load_checkpoint(path)
    assert not canary.exists()


def test_deflated_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * 50_000_000)
    with pytest.raises(KdxError, match="bomb.pth: claims"):
        load_checkpoint(path)


def test_what_does_not_fit_is_told_by_name(saved: Path) -> None:
    """pitfall(3): a checkpoint says what it is, and that is compared, not only the shapes."""
    with pytest.raises(KdxError, match="network is 'tiny', needed 'resnet18'; num_classes is None, needed 10"):
        check_metadata(saved, load_checkpoint(saved)["meta"], {"network": "resnet18", "num_classes": 10})
    with pytest.raises(KdxError, match="says nothing"):
        check_metadata(saved, {}, {"network": "resnet18"})
    with pytest.raises(KdxError, match="do not fit the network"):
        load_weights(tiny.wide(3, 1), load_checkpoint(saved), saved)


def test_prefixed_keys_and_nan_weights_are_refused(tmp_path: Path) -> None:
    state = tiny.network(3, 1).state_dict()
    with pytest.raises(KdxError, match="do not fit"):
        load_weights(tiny.network(3, 1), {"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path)
    state["head.bias"][0] = float("nan")
    with pytest.raises(KdxError, match="not finite in head.bias"):
        load_weights(tiny.network(3, 1), {"model": state}, tmp_path)


@pytest.mark.parametrize(
    ("key", "change", "told"),
    [
        (
            "head.weight",
            lambda weight: weight.to(torch.int8),
            "head.weight holds whole numbers, .* needs floating-point",
        ),
        ("head.weight", lambda weight: weight > 0, "holds torch.bool"),
        ("head.weight", lambda weight: weight.to(torch.complex64), "holds torch.complex64"),
        ("head.weight", lambda weight: weight.to_sparse(), "torch.sparse_coo"),
        ("head.weight", lambda weight: weight.tolist(), "holds a list"),
        (
            "head.weight",
            lambda weight: torch.full_like(weight, 1e300, dtype=torch.float64),
            "not finite in head.weight",
        ),
        ("norm.running_var", lambda weight: weight.to(torch.int64), "norm.running_var holds whole numbers"),
        ("norm.num_batches_tracked", lambda count: count.float(), "num_batches_tracked holds floating-point"),
        ("norm.num_batches_tracked", lambda count: count.bool(), "num_batches_tracked holds torch.bool"),
    ],
)
def test_weights_that_would_load_as_other_numbers_are_refused(key: str, change: Callable, told: str) -> None:
    state = tiny.network(3, 1).state_dict()
    state[key] = change(state[key])
    with pytest.raises(KdxError, match=f"^a.pth: .*{told}"):
        load_weights(tiny.network(3, 1), {"model": state}, Path("a.pth"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_load(dtype: torch.dtype) -> None:
    state = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in tiny.network(3, 1).state_dict().items()
    }
    network = tiny.network(3, 1)
    load_weights(network, {"model": state}, Path("a.pth"))
    assert torch.equal(network.get_parameter("head.weight"), state["head.weight"].float())


def test_weights_of_a_lazy_layer_load() -> None:
    whole = tiny.flat(3, 1)
    whole(torch.zeros(2, 1, 8, 8))
    network = tiny.flat(3, 1)
    load_weights(network, {"model": whole.state_dict()}, Path("a.pth"))
    assert torch.equal(network.get_parameter("1.weight"), whole.get_parameter("1.weight"))


def test_other_format_and_missing_file_are_told(saved: Path) -> None:
    torch.save({"model": {}, "format": 99}, saved.parent / "new.pth")
    with pytest.raises(KdxError, match="format 99"):
        load_checkpoint(saved.parent / "new.pth")
    remove_checkpoint(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["new.pth"]
    with pytest.raises(KdxError, match="no such checkpoint"):
        load_checkpoint(saved)


def test_files_follow_the_umask_and_leave_no_temp(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "a" / "x.json", {"a": 1})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a" / "x.json").stat().st_mode) == 0o640
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]


def test_failed_write_keeps_the_old_file_and_no_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KdxError, match="x.json: No space left on device"):
        write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 1\n}\n' and [p.name for p in tmp_path.iterdir()] == ["x.json"]
