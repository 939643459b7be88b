import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from kdx.errors import KdxError
from kdx.losses import AttentionTransfer
from kdx.losses.objective import Facts
from kdx.models.batch_norm import momentum_for, set_momentum, slow_momentum
from kdx.models.features import Watched, resolve_layers
from kdx.models.networks import (
    NetworkSpec,
    build_network,
    capture_features,
    check_network,
    count_parameters,
    freeze_all_but_classifier,
    get_resnet_model,
    set_training_mode,
)
from kdx.models.stem import resolve_stem
from tests import tiny


@pytest.mark.parametrize(("name", "millions"), [("resnet50", 23.5), ("resnet34", 21.3), ("resnet18", 11.2)])
def test_parameters_with_ten_classes(name: str, millions: float) -> None:
    assert round(count_parameters(get_resnet_model(name, 10, False)) / 1e6, 1) == millions


def test_small_stem_keeps_the_resolution() -> None:
    network = build_network(NetworkSpec("resnet18", 10, in_channels=1, stem="small"))
    with capture_features(network, "layer1") as seen:
        check_network(network, NetworkSpec("resnet18", 10, in_channels=1), (8, 8))
    assert seen[0].shape[-2:] == (8, 8)


@pytest.mark.parametrize(
    ("stem", "name", "pretrained", "size", "result"),
    [
        ("auto", "resnet18", False, 64, "small"),
        ("auto", "resnet18", False, 65, "imagenet"),
        ("auto", "resnet18", True, 32, "imagenet"),
        ("auto", "vgg11", False, 32, "imagenet"),
        ("imagenet", "resnet18", False, 32, "imagenet"),
    ],
)
def test_stem_is_chosen_by_size_and_start(stem: str, name: str, pretrained: bool, size: int, result: str) -> None:
    assert resolve_stem(stem, name, pretrained, size) == result


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "densenet121", "regnet_y_400mf", "googlenet"])
def test_other_torchvision_networks_by_name(name: str) -> None:
    spec = NetworkSpec(name, 7)
    check_network(build_network(spec), spec, (64, 64))


def test_user_network_by_path_and_its_errors() -> None:
    spec = NetworkSpec(tiny.NETWORK, 3, in_channels=1)
    check_network(build_network(spec), spec, (8, 8))
    with pytest.raises(KdxError, match="tests.tiny:netwrk"):
        build_network(NetworkSpec("tests.tiny:netwrk", 3))
    with pytest.raises(KdxError, match="cannot be called with num_classes and in_channels"):
        build_network(NetworkSpec("tests.tiny:dataset", 3))
    with pytest.raises(KdxError, match="ImageNet weights exist for torchvision's and timm's"):
        build_network(NetworkSpec(tiny.NETWORK, 3, pretrained=True))


def test_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(KdxError, match="resnet19.*did you mean 'resnet1"):
        build_network(NetworkSpec("resnet19", 10))


def test_image_too_small_for_a_network_is_told_before_training() -> None:
    spec = NetworkSpec("vgg11", 10)
    with pytest.raises(KdxError, match="'vgg11' fails on 8x8 images: .*; set dataset.resize=32$"):
        check_network(build_network(spec), spec, (8, 8))


def test_a_network_of_one_size_says_which() -> None:
    spec = NetworkSpec("vit_b_32", 3)
    told = "^model.teacher=vit_b_32: fails on 28x28 images: AssertionError: Wrong image height! .*; set dataset.resize=224$"
    with pytest.raises(KdxError, match=told):
        check_network(build_network(spec), spec, (28, 28), called="model.teacher=vit_b_32:")


def test_a_method_of_layers_leaves_it_to_the_network_to_say_which_images_it_takes(tiny_run) -> None:
    stage = ["stage=student", "stage.student.guide=teacher", "model.student=vgg11", "kd=pkt", "kd.layers=pooled"]
    told = "^model.student=vgg11: fails on 8x8 images: .*; set dataset.resize=32$"
    with pytest.raises(KdxError, match=told):
        tiny_run(*stage, "plan=true")


class Slow(nn.Module):
    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=momentum)


def test_batch_norm_of_networks_for_long_trainings_is_usual_from_scratch() -> None:
    """The table of names against torchvision's definitions; RegNets cannot be built without memory, and are usual."""
    names = torchvision.models.list_models(module=torchvision.models)
    for name in (name for name in names if not name.startswith("regnet")):
        own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        with torch.device("meta"):
            network = torchvision.models.get_model(name, weights=None, **own)
        chosen = momentum_for(name, pretrained=False)
        if chosen is not None:
            set_momentum(network, chosen)
        assert slow_momentum(network, steps=1) is None, name
        assert chosen is None or chosen == 0.1 and momentum_for(name, pretrained=True) is None
    assert momentum_for("mobilenet_v3_mine:network", pretrained=False) is None


def test_slow_batch_norm_is_told_where_it_matters() -> None:
    assert slow_momentum(Slow(0.01), steps=100) == 0.01  # 37 % of the first statistics are left
    assert slow_momentum(Slow(0.01), steps=300) is None  # 4.9 %
    assert slow_momentum(Slow(None), steps=1) is None  # a mean over all steps
    assert slow_momentum(Slow(0.1), steps=1) is None
    frozen = Slow(0.01).requires_grad_(False)
    assert slow_momentum(frozen, steps=1) is None


@pytest.fixture
def imagenet_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A full ResNet-18 for 1,000 classes in torch's hub folder, under the name that torchvision asks for."""
    network = torchvision.models.resnet18()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()[:8]
    (folder / "weights.pth").rename(folder / f"resnet18-{digest}.pth")

    class Weights:
        url = f"https://example.invalid/resnet18-{digest}.pth"

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: type("Enum", (), {"DEFAULT": Weights}))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return network


def test_pretrained_backbone_is_loaded_and_the_classifier_replaced(imagenet_weights: nn.Module) -> None:
    network = get_resnet_model("resnet18", 5, pretrained=True)
    assert torch.equal(
        network.get_parameter("layer4.1.conv2.weight"), imagenet_weights.get_parameter("layer4.1.conv2.weight")
    )
    assert network.get_parameter("fc.weight").shape == (5, 512)


def test_damaged_and_missing_imagenet_weights_say_what_to_do(imagenet_weights: nn.Module, tmp_path: Path) -> None:
    path = next((tmp_path / "hub" / "checkpoints").iterdir())
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(KdxError, match="damaged .*delete it"):
        get_resnet_model("resnet18", 5, pretrained=True)
    path.unlink()
    with pytest.raises(KdxError, match="download https://example.invalid/resnet18.* by hand and put it into"):
        build_network(NetworkSpec("resnet18", 5, pretrained=True), download=False)


def test_frozen_backbone_trains_the_classifier_only_and_keeps_its_statistics() -> None:
    network = build_network(NetworkSpec("resnet18", 3, freeze_backbone=True))
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained == ["fc.weight", "fc.bias"]
    before = network.get_buffer("bn1.running_mean").clone()
    set_training_mode(network)
    network(torch.randn(4, 3, 32, 32))
    assert torch.equal(network.get_buffer("bn1.running_mean"), before)
    free = get_resnet_model("resnet18", 3)
    set_training_mode(free)
    free(torch.randn(4, 3, 32, 32))
    assert not torch.equal(free.get_buffer("bn1.running_mean"), before)


def test_classifier_of_a_frozen_user_network_is_found() -> None:
    network = tiny.network(3, 1)
    freeze_all_but_classifier(network)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


class HeadFirst(torch.nn.Module):
    """Registers its classifier, which it applies to every token, before another linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(12, 3)
        self.gate = torch.nn.Linear(12, 12)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.tokens(images)).mean(dim=1)

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        return self.gate(images.flatten(1)[:, :192].unflatten(1, (16, 12)))


def test_the_classifier_is_the_linear_layer_for_the_classes_and_its_input_is_pooled_over_tokens() -> None:
    network, images = HeadFirst(), torch.randn(2, 3, 8, 8)
    freeze_all_but_classifier(network, 3)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    layers = resolve_layers(network, ["pooled"], images)
    assert layers == {"pooled": ("head",)}
    (pooled,) = Watched(network, layers)(images).features["pooled"]
    assert torch.allclose(pooled, network.tokens(images).mean(dim=1), atol=1e-6) and pooled.shape == (2, 12)


def test_hooks_are_removed_also_after_an_error() -> None:
    network = tiny.network(3, 1)
    with pytest.raises(RuntimeError), capture_features(network, "stem"):
        network(torch.zeros(1, 2, 8, 8))
    assert not network.get_submodule("stem")._forward_hooks
    with pytest.raises(KdxError, match="layer=stm: .*did you mean 'stem'"), capture_features(network, "stm"):
        pass


@pytest.mark.parametrize(("name", "thousands"), [("resnet8", 78), ("resnet20", 272), ("resnet56", 856)])
def test_thin_networks_have_the_papers_size(name: str, thousands: int) -> None:
    """Within 1%: the paper's shortcuts without weights, ours are 1x1 convolutions."""
    spec = NetworkSpec(f"kdx.thin:{name}", 10)
    network = build_network(spec)
    assert count_parameters(network) / 1000 == pytest.approx(thousands, rel=0.01)
    check_network(network, spec, (32, 32))


@pytest.mark.parametrize(
    ("name", "size", "side"), [("mobilenet_v3_small", 32, 4), ("squeezenet1_1", 64, 7), ("kdx.thin:resnet8", 32, 8)]
)
def test_small_stem_of_any_cnn_keeps_every_weight(name: str, size: int, side: int) -> None:
    torch.manual_seed(0)
    plain = build_network(NetworkSpec(name, 5))
    torch.manual_seed(0)
    spec = NetworkSpec(name, 5, stem="small", image_size=(size, size))
    network = build_network(spec)
    assert all(torch.equal(plain.state_dict()[key], value) for key, value in network.state_dict().items())
    check_network(network, spec, (size, size))
    maps = Watched(network.eval(), resolve_layers(network, ("stages",), torch.zeros(1, 3, size, size)))
    assert side in {stage.shape[2] for stage in maps(torch.zeros(1, 3, size, size)).features["stages"]}


class OwnTransformer(nn.Module):
    """A user's own, with `prefix` tokens that stand for no place, of which it says nothing."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.tokens = nn.Parameter(torch.zeros(1, prefix, 16))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.tokens.expand(len(images), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(dim=1))


VIT = {"image_size": 32, "patch_size": 8, "num_layers": 4, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
SWIN = {"patch_size": [4, 4], "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": [4, 4]}


@pytest.mark.parametrize(
    ("made", "shapes"),
    [
        (torchvision.models.VisionTransformer(**VIT), [(16, 4, 4)] * 4),
        (torchvision.models.SwinTransformer(**SWIN), [(16, 8, 8), (32, 4, 4)]),
        (OwnTransformer(0), [(16, 4, 4)] * 4),
        (OwnTransformer(1), [(17, 16)] * 4),
    ],
)
def test_a_transformers_maps_are_its_blocks_and_not_its_patches(made: nn.Module, shapes, monkeypatch) -> None:
    """The convolution that cuts an image into patches gives a map, too, of which a teacher has nothing to say."""
    monkeypatch.setattr(torchvision.models, "get_model", lambda *a, **k: made)
    network, images = build_network(NetworkSpec("vit_b_16", 3)), torch.rand(2, 3, 32, 32)
    layers = resolve_layers(network, ("stages", "last_map"), images)
    with torch.no_grad():
        seen = Watched(network.eval(), layers)(images)
    assert [tuple(maps.shape[1:]) for maps in seen.features["stages"]] == shapes
    if len(shapes[0]) == 2:
        with pytest.raises(KdxError, match=r"maps \(B, C, H, W\) are needed, .*; num_prefix_tokens of the network"):
            AttentionTransfer().prepare(Facts("multi-class", 3, 10, seen, seen))


def test_small_stem_of_a_resnet_with_imagenet_weights_keeps_its_convolution() -> None:
    assert (
        resolve_stem("small", "resnet18", True, 32) == "finer"
        and resolve_stem("small", "resnet18", False, 32) == "small"
    )
    network = build_network(NetworkSpec("resnet18", 5, stem="finer", image_size=(32, 32)))
    assert network.conv1.weight.shape[2:] == (7, 7) and (network.conv1.stride, network.maxpool.stride) == (
        (1, 1),
        (1, 1),
    )


def test_small_stem_of_a_vit_is_one_line() -> None:
    with pytest.raises(KdxError, match="^model.stem=small: 'vit_b_32' is no CNN that takes images of any size"):
        build_network(NetworkSpec("vit_b_32", 5, stem="small"))
