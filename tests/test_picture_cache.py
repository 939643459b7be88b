"""dataset.cache=disk: pictures decoded once into a file that runs share."""

import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from kdx.chain.chain import run_chain
from kdx.config.settings import read_settings
from kdx.data import picture_cache
from kdx.data.batches import Batches, Preprocessing, mean_and_std
from kdx.data.dataset import Dataset
from kdx.data.decoding import DecodedFiles
from kdx.data.imagefolder import load_imagefolder
from kdx.data.picture_cache import CachedPictures
from kdx.deploy.run_loader import load_data, load_stage
from kdx.errors import KdxError
from tests.conftest import TINY, TinyRun, compose_config, same_weights


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """106 pictures of 14x12."""
    draw = torch.Generator().manual_seed(0)
    for split, count in (("train", 40), ("val", 5), ("test", 8)):
        for name in ("cat", "dog"):
            (tmp_path / "p" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (12, 14, 3), dtype=torch.uint8, generator=draw)
                Image.fromarray(pixels.numpy()).save(tmp_path / "p" / split / name / f"{number:02}.png")
    return tmp_path / "p"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_cache, "CHUNK", 8)


def load(pictures: Path, cache: str = "disk", size: int | None = 10, **how: object) -> Dataset:
    options = {"in_memory_gb": 2.0, "num_workers": 0, "cache_dir": str(pictures.parent / "cache")} | how
    return load_imagefolder(str(pictures), size, cache=cache, **options)  # type: ignore[arg-type]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every picture that is decoded."""
    decoded: list[int] = []
    read = DecodedFiles.__getitem__

    def counting(self: DecodedFiles, index: int) -> torch.Tensor:
        decoded.append(index)
        return read(self, index)

    monkeypatch.setattr(DecodedFiles, "__getitem__", counting)
    return decoded


def cache_files(pictures: Path) -> list[str]:
    return sorted(path.suffix for path in (pictures.parent / "cache").iterdir())


def test_the_file_holds_what_memory_would(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = counted(monkeypatch)
    disk, memory, none = load(pictures), load(pictures, "memory"), load(pictures, "none")
    assert disk.digest == memory.digest == none.digest and len(decoded) == 3 * 106
    preprocessing = Preprocessing((0.4,) * 3, (0.2,) * 3, 8)
    for split in ("train", "val", "test"):
        its, other = getattr(disk, split), getattr(memory, split)
        assert isinstance(its.images, CachedPictures) and its.images.shape == (3, 10, 10)
        assert torch.equal(its.images.pixels, other.images) and torch.equal(its.images[3], other.images[3])
        seen = []
        for data in (disk, memory, none):
            how = {"batch_size": 7, "device": torch.device("cpu"), "shuffle": True, "augment": ["resized_crop"]}
            batches = Batches(getattr(data, split), preprocessing, **how)  # type: ignore[arg-type]
            seen.append(torch.cat([batch.images for batch in batches.epoch(1)]))
        assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    assert mean_and_std(disk.train.images) == mean_and_std(memory.train.images)
    assert cache_files(pictures) == [".blake2b", ".u8"]


def test_a_second_run_decodes_nothing(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(pictures)
    decoded = counted(monkeypatch)
    assert load(pictures).digest and not decoded
    load(pictures, size=9)
    assert len(decoded) == 106 and cache_files(pictures) == [".blake2b", ".blake2b", ".u8", ".u8"]
    Image.new("RGB", (14, 12)).save(pictures / "train" / "cat" / "00.png")
    load(pictures)
    assert len(decoded) == 212  # other pictures are another file


def test_what_a_run_that_died_left_is_gone_on_with(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = DecodedFiles.__getitem__, []

    def dies(self: DecodedFiles, index: int) -> torch.Tensor:
        calls.append(index)
        if len(calls) == 45:
            raise KeyboardInterrupt
        return read(self, index)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(DecodedFiles, "__getitem__", dies)
        load(pictures)
    assert ".u8" not in cache_files(pictures) and ".part" in cache_files(pictures)
    (part,) = (pictures.parent / "cache").glob("*.part")
    part.write_bytes(part.read_bytes()[:-1] + b"\0" * 400)  # what a machine that lost power may leave
    decoded = counted(monkeypatch)
    disk = load(pictures)
    assert len(decoded) == 106 - 4 * 8
    assert torch.equal(disk.train.images.pixels, load(pictures, "memory").train.images)  # type: ignore[union-attr]
    assert cache_files(pictures) == [".blake2b", ".u8"]


@pytest.mark.parametrize("harm", ["flip", "cut", "hashes"])
def test_a_damaged_file_is_set_aside_and_made_again(pictures: Path, harm: str) -> None:
    load(pictures)
    (file,) = (pictures.parent / "cache").glob("*.u8")
    content = file.read_bytes()
    if harm == "flip":
        file.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif harm == "cut":
        file.write_bytes(content[:-1])
    else:
        file.with_name(f"{file.name}.blake2b").write_text("no hash")
    again = load(pictures)
    assert torch.equal(again.train.images.pixels, load(pictures, "memory").train.images)  # type: ignore[union-attr]
    assert file.read_bytes() == content and ".damaged" in cache_files(pictures)


def _load_apart(pictures: Path) -> str:
    return str(load(pictures).train.images[5].sum().item())


def test_runs_at_the_same_time_share_the_file(pictures: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(_load_apart, [pictures, pictures])
    assert len(set(found)) == 1 and cache_files(pictures) == [".blake2b", ".u8"]


def test_auto_takes_memory_then_disk_then_none(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(**how: object) -> str:
        return type(load(pictures, "auto", **how).train.images).__name__

    assert kind() == "Tensor"
    assert kind(in_memory_gb=0.0) == "CachedPictures"
    assert kind(in_memory_gb=0.0, cache_dir=None) == "DecodedFiles"
    monkeypatch.setattr("kdx.data.decoding.free_bytes", lambda folder: 60_000)
    assert kind(in_memory_gb=0.0) == "DecodedFiles"  # 31,800 bytes would leave less than that


def test_what_cannot_be_kept_is_one_line(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KdxError, match=r"dataset.cache=disk: dataset.cache_dir=null: a folder is needed"):
        load(pictures, cache_dir=None)
    (pictures.parent / "file").touch()
    with pytest.raises(
        KdxError, match=r"cannot make the folder .*file; choose another dataset.cache_dir|Not a directory"
    ):
        load(pictures, cache_dir=str(pictures.parent / "file" / "deeper"))
    monkeypatch.setattr(picture_cache, "free_bytes", lambda folder: 1000)
    with pytest.raises(KdxError, match=r"dataset.cache_dir=.*cache: 0.00 GB are needed .* choose another folder, or"):
        load(pictures)
    (pictures / "test" / "cat" / "00.png").write_text("broken")
    monkeypatch.undo()
    with pytest.raises(KdxError, match=r"00.png: not a readable image"):
        load(pictures)


def test_the_cache_changes_no_weights_and_no_fingerprint(pictures: Path) -> None:
    own = [word for word in TINY if not word.startswith(("dataset", "epochs"))]
    own += ["dataset=imagefolder", f"dataset.path={pictures}", "dataset.size=8", "num_workers=0", "stage=teacher"]
    own += ["epochs=1", "stage.reuse=never", f"output_dir={pictures.parent / 'outputs'}"]
    runs = []
    for cache in ("disk", "none"):
        folder = pictures.parent / "outputs" / cache
        folder.mkdir(parents=True)
        run_chain(read_settings(compose_config(*own, f"dataset.cache={cache}")), folder, [])
        runs.append(TinyRun(folder))
    assert same_weights(*(run.checkpoint("teacher") for run in runs))
    assert len(list((pictures.parent / "outputs" / "cache").glob("*.u8"))) == 1
    assert runs[0].summary["plan"] == runs[1].summary["plan"]
    stage = load_stage(runs[0].folder, "teacher", "tests.tiny:wide")
    shutil.rmtree(pictures.parent / "outputs" / "cache")
    assert load_data(stage).digest and not (pictures.parent / "outputs" / "cache").exists()  # export makes no file
