import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from medmnist import INFO
from PIL import Image

from kdx.data.batches import resized
from kdx.data.dataset import Dataset, Split, from_arrays
from kdx.data.decoding import decoded_batches
from kdx.data.imagefolder import load_imagefolder
from kdx.data.sources import carve, load_cifar, load_digits, load_medmnist
from kdx.errors import KdxError
from tests import tiny

MEDMNIST_2D = [name for name in INFO if not name.endswith("3d")]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:  # which data loader workers use among themselves
            raise OSError("no network in tests")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write_medmnist(path: Path, name: str, size: int = 28, count: int = 24) -> None:
    info = INFO[name]
    classes, channels = len(info["label"]), info["n_channels"]
    arrays = {}
    draw = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        shape = (count, size, size, 3) if channels == 3 else (count, size, size)
        arrays[f"{split}_images"] = draw.integers(0, 256, shape, dtype=np.uint8)
        if info["task"].startswith("multi-label"):
            arrays[f"{split}_labels"] = draw.integers(0, 2, (count, classes), dtype=np.uint8)
        else:
            arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % classes)[:, None]
    np.savez(path, **arrays)


@pytest.mark.parametrize("name", MEDMNIST_2D)
def test_each_medmnist_set_is_read_offline(name: str, tmp_path: Path) -> None:
    """pitfall(16), pitfall(17): class names from the dict with string keys, each set with its own task."""
    write_medmnist(tmp_path / f"{name}.npz", name)
    data = load_medmnist(name, 28, str(tmp_path), download=False)
    assert data.num_classes == len(INFO[name]["label"])
    assert data.class_names[0] == INFO[name]["label"]["0"]
    assert data.image_shape == (INFO[name]["n_channels"], 28, 28)
    assert (data.train.labels.ndim == 2) == (data.task == "multi-label") == (name == "chestmnist")
    assert (data.task == "binary-class") == (name in ("breastmnist", "pneumoniamnist"))


def test_medmnist_plus_size_picks_its_file(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "bloodmnist_64.npz", "bloodmnist", size=64)
    assert load_medmnist("bloodmnist", 64, str(tmp_path), download=False).image_shape == (3, 64, 64)


@pytest.mark.parametrize("download", [False, True])
def test_missing_data_says_what_to_put_where(tmp_path: Path, download: bool) -> None:
    """pitfall(18): data is there when its file is, whatever else lies in the folder."""
    (tmp_path / "pneumoniamnist.json").write_text("{}")
    with pytest.raises(KdxError, match=r"put pneumoniamnist.npz from \S+ into data_dir=") as error:
        load_medmnist("pneumoniamnist", 28, str(tmp_path), download)
    assert "\n" not in str(error.value)
    left = [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"]  # of a download that was tried
    assert left == ["pneumoniamnist.json"]
    with pytest.raises(KdxError, match=r"put cifar-10-python.tar.gz from \S+ into data_dir="):
        load_cifar("cifar10", str(tmp_path), download)


def test_damaged_cifar_archive_is_not_fetched_behind_the_users_back(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half a download")
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda *_: pytest.fail("fetched"))
    for download in (False, True):
        with pytest.raises(KdxError, match=r"cifar-10-python.tar.gz is damaged \(its md5 is not"):
            load_cifar("cifar10", str(tmp_path), download)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "pickled", "missing key"])
def test_damaged_medmnist_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "breastmnist.npz"
    write_medmnist(path, "breastmnist")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[2000] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickled":
        np.savez(path, train_images=np.array([{}], dtype=object))
    else:
        np.savez(path, train_images=np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(KdxError, match="breastmnist.npz"):
        load_medmnist("breastmnist", 28, str(tmp_path), download=False)


def write_cifar10(root: Path) -> None:
    """The layout of the original archive with blank images and torchvision's checksums switched off by the test."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{number}" for number in range(1, 6)]
    for number, name in enumerate([*names, "test_batch"]):
        images = np.full((10000, 3072), number, dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": [i % 10 for i in range(10000)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{i}" for i in range(10)]}))


def test_cifar_split_is_45k_5k_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).exists())
    write_cifar10(tmp_path)
    data = load_cifar("cifar10", str(tmp_path), download=False)
    assert (len(data.train), len(data.val), len(data.test)) == (45000, 5000, 10000)
    assert torch.bincount(data.val.labels).tolist() == [500] * 10
    assert data.image_shape == (3, 32, 32)
    assert load_cifar("cifar10", str(tmp_path), download=False).digest == data.digest


def test_digits_are_real_complete_and_disjoint() -> None:
    data = load_digits()
    assert (len(data.train), len(data.val), len(data.test)) == (1257, 180, 360)
    assert data.image_shape == (1, 8, 8) and data.num_classes == 10 and data.mirrored
    assert int(data.train.images.max()) == 255 and int(data.train.images.min()) == 0


@pytest.mark.parametrize("left_out", ["train", "val", "test"])
def test_a_split_that_is_missing_is_named(left_out: str) -> None:
    arrays = {split: arrays for split, arrays in tiny.arrays().items() if split != left_out}
    with pytest.raises(KdxError, match=rf"^mine: the splits train, val, test are needed: {left_out} is missing, "):
        from_arrays("mine", arrays, task="multi-class", class_names=["a", "b", "c"])


@pytest.mark.parametrize("counts", [[100, 2, 2], [1000, 5, 5, 2], [200, 3, 3, 3, 3, 3], [2, 2, 2], [0, 40, 2]])
def test_a_carved_split_has_every_class_on_both_sides(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    size = max(-(-len(labels) // 10), len(counts))
    kept, carved = carve(labels, size)
    assert sorted([*kept, *carved]) == list(range(len(labels))) and len(carved) == size
    assert set(labels[kept]) == set(labels[carved]) == set(labels)
    assert np.array_equal(carve(labels, size)[1], carved)


def test_a_carved_split_is_disjoint_and_stratified() -> None:
    labels = np.repeat([0, 1, 2], 100)
    kept, carved = carve(labels, 0.1)
    assert not set(kept) & set(carved) and len(kept) + len(carved) == 300
    assert np.bincount(labels[carved]).tolist() == [10, 10, 10]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 100, (10, 12, 3), dtype=np.uint8) + np.uint8(100 * number)
                Image.fromarray(pixels).save(tmp_path / "pictures" / split / name / f"{index:02d}.png")
    return tmp_path / "pictures"


def load(folder: Path, size: int | None = None, gb: float = 1.0, workers: int = 0) -> Dataset:
    return load_imagefolder(str(folder), size, gb, workers)


def test_imagefolder_in_memory_and_from_files_are_the_same(folder: Path) -> None:
    memory, files = load(folder), load(folder, gb=0)
    assert memory.class_names == ("cat", "dog") and memory.task == "binary-class"
    assert memory.image_shape == files.image_shape == (3, 10, 12)
    assert (len(memory.train), len(memory.val), len(memory.test)) == (36, 4, 10)
    assert memory.digest == files.digest
    assert not isinstance(files.train.images, torch.Tensor)
    assert torch.equal(torch.stack([files.train.images[i] for i in range(36)]), memory.train.images)


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_number_of_workers_changes_nothing(folder: Path, workers: int) -> None:
    images = load(folder, gb=0).train.images
    assert not isinstance(images, torch.Tensor)
    before = torch.get_rng_state()
    batches = list(decoded_batches(images, [[3, 1], [0, 2, 5]], workers))
    assert torch.equal(torch.cat(batches), torch.stack([images[i] for i in (3, 1, 0, 2, 5)]))
    assert torch.equal(before, torch.get_rng_state())


def test_imagefolder_resizes_when_asked_only(folder: Path) -> None:
    assert load(folder, size=8).image_shape == (3, 8, 8)
    Image.new("RGB", (30, 40)).save(folder / "train" / "dog" / "zz.png")
    with pytest.raises(KdxError, match=r"zz.png: 30x40 pixels.*set dataset.size"):
        load(folder)
    assert load(folder, size=8).image_shape == (3, 8, 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named_in_one_line(folder: Path, workers: int) -> None:
    (folder / "train" / "cat" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(KdxError, match=r"broken.jpg: not a readable image") as error:
        load(folder, workers=workers)
    assert "\n" not in str(error.value)


def test_imagefolder_uses_its_own_val_and_names_what_is_wrong(folder: Path) -> None:
    (folder / "train").rename(folder / "away")
    with pytest.raises(KdxError, match="train is missing"):
        load(folder)
    (folder / "away").rename(folder / "train")
    (folder / "test" / "cow").mkdir()
    with pytest.raises(KdxError, match="cow: this class has no folder in train"):
        load(folder)
    (folder / "test" / "cow").rmdir()
    (folder / "train" / "ape").mkdir()
    with pytest.raises(KdxError, match="no image of class ape"):
        load(folder)


def test_changed_picture_changes_the_digest(folder: Path) -> None:
    before = load(folder).digest
    Image.new("RGB", (12, 10)).save(folder / "test" / "dog" / "00.png")
    assert load(folder).digest != before


BAD_LABELS = [
    (np.array([0, 1, 3] * 10), "label 3 of image 2 is out of range"),
    (np.array([0, 1, -1] * 10), "label -1 of image 2"),
    (np.array([0, 1, -100] * 10), "label -100 of image 2"),
    (np.array([0.0, 1.0, 2.0] * 10), "labels are float64, not integers"),
    (np.array([0, 1, 2] * 9), "30 images but 27 labels"),
    (np.zeros((30, 2), dtype=int), "labels have shape"),
    (np.array([0, 1, 1] * 10), "no image of class c"),
]


@pytest.mark.parametrize(("labels", "message"), BAD_LABELS)
def test_bad_labels_are_refused_with_their_place(labels: np.ndarray, message: str) -> None:
    arrays = tiny.arrays()
    arrays["train"] = (arrays["train"][0], labels)
    with pytest.raises(KdxError, match="tiny/train: .*" + message):
        from_arrays("tiny", arrays, task="multi-class", class_names="abc")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((30, 8, 8), dtype=np.float32), "images are float32, not uint8"),
        (np.zeros((30, 8, 8, 2), dtype=np.uint8), "images have shape"),
        (np.zeros((0, 8, 8), dtype=np.uint8), "images have shape"),
        (np.zeros((30, 9, 9), dtype=np.uint8), "differ in shape"),
    ],
)
def test_bad_images_are_refused(images: np.ndarray, message: str) -> None:
    arrays = tiny.arrays()
    arrays["val"] = (images, arrays["val"][1])
    with pytest.raises(KdxError, match=message):
        from_arrays("tiny", arrays, task="multi-class", class_names="abc")


def test_few_images_of_a_split_are_chosen_over_its_classes() -> None:
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)
    split = Split(images, torch.tensor([2, 2, 2, 0, 0, 5, 2, 0]))
    for count, chosen in ((0, []), (2, [3, 0]), (5, [3, 0, 5, 4, 1]), (99, [3, 0, 5, 4, 1, 7, 2, 6])):
        few, labels = split.of_each_class(count)
        assert few.flatten().tolist() == chosen and torch.equal(labels, split.labels[chosen])
    assert split.first(3)[0].flatten().tolist() == [0, 1, 2] and len(split.first(99)[0]) == 8
    assert split.spread(3)[0].flatten().tolist() == [0, 2, 5] and len(split.spread(99)[0]) == 8
    several = Split(images, torch.tensor([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0], [0, 1], [1, 0], [0, 1]]))
    assert several.of_each_class(5)[0].flatten().tolist() == [2, 1, 0, 3, 5]


def test_columns_of_labels_are_flattened() -> None:
    arrays = {split: (images, labels[:, None]) for split, (images, labels) in tiny.arrays().items()}
    assert from_arrays("tiny", arrays, task="multi-class", class_names="abc").train.labels.shape == (30,)


def test_another_file_under_the_name_of_a_set_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be meant so: the run goes on, and its summary says that the data is not the published one."""
    path = tmp_path / "breastmnist.npz"
    write_medmnist(path, "breastmnist")
    hashed: list[Path] = []
    published = [INFO["breastmnist"]["MD5"], "e" * 32]
    monkeypatch.setattr("kdx.data.sources.md5_of", lambda path: hashed.append(path) or published[0])
    assert load_medmnist("breastmnist", 28, str(tmp_path), download=False).notes == ()
    write_medmnist(path, "breastmnist", count=30)
    published.pop(0)
    for _ in range(2):
        (note,) = load_medmnist("breastmnist", 28, str(tmp_path), download=False).notes
        assert (
            note
            == f"breastmnist.npz is not the published file: its md5 is {'e' * 32}, the published one's "
            + (INFO["breastmnist"]["MD5"])
        )
    assert len(hashed) == 2  # once for each content


@pytest.mark.timeout(20)
def test_a_fifo_under_the_name_of_a_set_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "breastmnist.npz")
    os.mkfifo(tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(KdxError, match="breastmnist.npz: a FIFO, a regular file is needed"):
        load_medmnist("breastmnist", 28, str(tmp_path), download=False)
    with pytest.raises(KdxError, match="cifar-10-python.tar.gz: a FIFO"):
        load_cifar("cifar10", str(tmp_path), download=False)
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    (tmp_path / "cifar-10-batches-py").mkdir()
    os.mkfifo(tmp_path / "cifar-10-batches-py" / "data_batch_1")
    with pytest.raises(KdxError, match="data_batch_1: a FIFO"):
        load_cifar("cifar10", str(tmp_path), download=False)


@pytest.mark.parametrize("labels", [[0] * 9 + [1], [0, 1, 2] * 2])
def test_too_few_images_to_carve_are_our_own_line(labels: list[int]) -> None:
    with pytest.raises(KdxError, match=r"cannot carve 1 of \d+ images off for validation: . classes need 2 images"):
        carve(np.array(labels), 1)


def test_batches_of_another_set_are_neither_read_nor_overwritten(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    for download in (False, True):
        with pytest.raises(KdxError, match="data_batch_1 is not the published file .*: move the folder away"):
            load_cifar("cifar10", str(tmp_path), download)


@pytest.mark.parametrize("size", [(64, 512), (512, 64), (64, 64), (65, 64)])
def test_images_that_shrink_in_one_direction_are_smoothed(size: tuple[int, int]) -> None:
    noise = (
        torch.rand(1, 1, 512, 64, generator=torch.manual_seed(0)) if size[0] > size[1] else torch.rand(1, 1, 64, 512)
    )
    images = noise[..., : size[0], : size[1]]
    spread = float(resized(images, 64).std())
    assert spread == pytest.approx(float(resized(images.transpose(2, 3), 64).std()), rel=1e-3)
    assert (spread < 0.8 * float(images.std())) == (max(size) == 512)
