from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdx.errors import KdxError
from kdx.models.networks import get_resnet_model
from kdx.visualize.feature_maps import (
    extract_and_visualize_features,
    last_map_layer,
    save_feature_maps,
    visualize_feature_maps,
)
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
