from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdx.augmentations import Cutmix, Flip
from kdx.data.batches import Preprocessing
from kdx.data.dataset import Split
from kdx.errors import KdxError
from kdx.models.networks import get_resnet_model
from kdx.visualize.__main__ import AUGMENT_COMMAND
from kdx.visualize.__main__ import main as visualize_main
from kdx.visualize.contact_sheet import draw_sheet, views_of
from kdx.visualize.feature_maps import (
    extract_and_visualize_features,
    last_map_layer,
    save_feature_maps,
    visualize_feature_maps,
)
from kdx.visualize.overlay import draw_overlay
from tests import tiny


def test_a_grid_of_maps_is_drawn(tmp_path: Path) -> None:
    maps = torch.zeros(1, 20, 6, 6)
    maps[0, :, 2:4, 2:4] = 1
    visualize_feature_maps(maps, num_maps=16, title="layer", save_path=tmp_path / "a" / "maps.png")
    picture = np.asarray(Image.open(tmp_path / "a" / "maps.png").convert("RGB"))
    assert picture.shape[0] > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 2
    assert len(visualize_feature_maps(maps[0, :3]).axes) == 4
    with pytest.raises(KdxError, match=r"feature maps of shape \(2, 3, 4, 4\)"):
        visualize_feature_maps(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_and_hooks_are_gone(tmp_path: Path, training: bool) -> None:
    network = get_resnet_model("resnet18", 3).train(training)
    features = extract_and_visualize_features(network, torch.zeros(3, 64, 64), "layer2", save_path=tmp_path / "x.png")
    assert features.shape == (1, 128, 8, 8) and (tmp_path / "x.png").exists()
    assert network.training == training and not network.get_submodule("layer2")._forward_hooks
    with pytest.raises(KdxError, match="layer=layer9: .*did you mean 'layer"):
        extract_and_visualize_features(network, torch.zeros(3, 64, 64), "layer9")
    with pytest.raises(KdxError, match="choose an earlier layer"):
        extract_and_visualize_features(network, torch.zeros(3, 64, 64), "fc")


def test_pictures_of_the_first_images_bear_their_labels(tmp_path: Path) -> None:
    loader = [(torch.zeros(2, 1, 8, 8), torch.tensor([2, 0])), (torch.zeros(2, 1, 8, 8), torch.tensor([1, 1]))]
    paths = save_feature_maps(tiny.network(3, 1), loader, "stem", tmp_path, num_samples=3)
    assert [path.name for path in paths] == [f"feature_maps_{n}_label_{label}.png" for n, label in enumerate((2, 0, 1))]
    assert all(path.exists() for path in paths)
    many = [(torch.zeros(2, 1, 8, 8), torch.tensor([[1, 0, 1], [0, 0, 0]]))]
    names = [path.name for path in save_feature_maps(tiny.network(3, 1), many, "stem", tmp_path / "many")]
    assert names == ["feature_maps_0_label_0+2.png", "feature_maps_1_label_none.png"]


def test_layer_with_maps_is_found() -> None:
    network = get_resnet_model("resnet18", 3)
    assert last_map_layer(network, torch.zeros(1, 3, 64, 64)) == "layer4"
    assert last_map_layer(network, torch.zeros(1, 3, 32, 32)) == "layer3"
    assert last_map_layer(tiny.network(3, 1), torch.zeros(1, 1, 8, 8)) == "norm"
    assert (
        last_map_layer(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), torch.zeros(1, 1, 8, 8)) is None
    )


def test_figures_are_whole_or_absent_and_errors_one_line(tmp_path: Path) -> None:
    maps = torch.rand(4, 5, 5)
    for name in ("a.png", "b.svg", "c"):
        visualize_feature_maps(maps, save_path=tmp_path / "new" / name)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "b.svg", "c.png"]
    with pytest.raises(KdxError, match=r"a\.xyz: Format 'xyz' is not supported"):
        visualize_feature_maps(maps, save_path=tmp_path / "a.xyz")
    (tmp_path / "file").touch()
    with pytest.raises(KdxError, match="cannot make the folder"):
        visualize_feature_maps(maps, save_path=tmp_path / "file" / "a.png")


def test_a_contact_sheet_shows_images_as_they_are_and_as_epochs_see_them(tmp_path: Path) -> None:
    data = tiny.dataset(channels=1, count=30)
    few = Split(*data.train.spread(16))
    assert few.labels.tolist() == [(number * 30 // 16) % 3 for number in range(16)]
    for mean, resize in (((0.3,), None), ((0.485, 0.456, 0.406), 12)):
        preprocessing = Preprocessing(mean, (0.25,) * len(mean), resize)
        views = views_of(few, preprocessing, [Flip(0.0), Cutmix()], 3, 8, 0)
        size = resize or 8
        assert views.shape == (16, 9, len(mean), size, size) and 0 <= float(views.min()) <= float(views.max()) <= 255
        if resize is None:
            assert torch.equal(views[:, 0], few.images.float())
            changed = [float((views[:, epoch] - views[:, 0]).abs().max()) for epoch in range(1, 9)]
            assert min(changed) > 1
    draw_sheet(views, data, few.labels, "a very long title " * 20, tmp_path / "sheet.png")
    picture = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert picture.shape[0] > 800 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_the_augment_command_takes_what_a_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*arguments: str) -> str:
        words, keys = AUGMENT_COMMAND.read(["augment", *arguments])
        return str(AUGMENT_COMMAND.work(words, **keys))

    monkeypatch.chdir(tmp_path)
    assert told("dataset=digits") == "digits: crop\nwrote augment_digits.png"
    asked = "augment={rotate:{degrees:30},mixup:{}}"
    assert told("dataset=digits", asked, "output=x") == "digits: mixup, rotate (degrees=30.0)\nwrote x.png"
    assert told("dataset=digits", "augment=crop,erase", "output=y.svg").startswith("digits: crop, erase\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["augment_digits.png", "x.png", "y.svg"]
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (tmp_path / "it's" / split / name).mkdir(parents=True)
            Image.fromarray(np.full((6, 8), len(name + split), np.uint8)).save(
                tmp_path / "it's" / split / name / "1.png"
            )
    own = ["dataset=imagefolder", "output=z.png"]
    for spelling in (["dataset.path=it's", "dataset.size=4"], ["path=it's", "size=4"], ["--dataset.path", "it's"]):
        assert told(*own, *spelling, "dataset.augment=[flip]") == "imagefolder: flip\nwrote z.png"
    for arguments, line in (
        (["dataset=digts"], "dataset=digts: no such option; did you mean 'digits'"),
        (["dataset=digits", "augment=corp"], "dataset.augment=.*did you mean 'crop'"),
        (["dataset=digits", "augment={mixup:{alpha:0}}"], r"dataset.augment.mixup.alpha=0: a finite number"),
        (["dataset=digits", "augment=flip"], "a flip changes the class of digits"),
        (["dataset=imagefolder", "path=it's not there"], "it's not there"),
        (["dataset=imagefolder", "path=a", "dataset.path=b"], "dataset.path: given twice, also as path"),
        (["dataset=digits", "dataset.path=b"], "dataset.path"),
        (["datset=digits"], "datset: no such key; did you mean 'dataset'"),
        (["dataset=digits", "augment={a:[}"], "no viable alternative"),
    ):
        with pytest.raises(KdxError, match=line):
            told(*arguments)


def test_the_first_word_chooses_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in ((["augment", "--help"], "16 training images"), (["--help"], "RUN_DIR [role=student]")):
        visualize_main(arguments)
        assert expected in capsys.readouterr().out


def test_maps_lie_over_their_image_whatever_its_range(tmp_path: Path) -> None:
    pixels = (torch.arange(12 * 16) * 255 // 191).to(torch.uint8).view(1, 12, 16)
    normalised = (pixels.float() / 255 - 0.4) / 0.2
    heat = torch.arange(6.0).view(2, 3)
    for image, name in ((pixels, "a.png"), (normalised, "b.png")):
        draw_overlay(image, {"$x": heat, "y": 5 * heat}, tmp_path / name)
    whole, scaled = (np.asarray(Image.open(tmp_path / name).convert("RGB"), dtype=int) for name in ("a.png", "b.png"))
    assert np.abs(whole - scaled).max() <= 1
    draw_overlay(pixels, {}, tmp_path / "titled.png", "two\nlines of $title")
    titled = np.asarray(Image.open(tmp_path / "titled.png"))
    assert titled.shape[1] * 3 == whole.shape[1] and titled.shape[0] > whole.shape[0]
