"""timm's networks by name: built for the data's size and channels, their layers found, their weights' licence told."""

import logging
from pathlib import Path

import pytest
import torch

from kdx.chain.check import check_stage
from kdx.chain.context import load_dataset, make_run_context
from kdx.deploy.run_loader import load_stage
from kdx.errors import KdxError
from kdx.files import hash_file
from kdx.models.features import Watched, classifier_of, map_of, resolve_layers
from kdx.models.networks import NetworkSpec, build_network, check_network
from kdx.models.timm_networks import tell_licence
from tests.conftest import settings_of

pytest.importorskip("timm")
SHAPES = {  # network: channels and side of its stages on 32 px
    "timm/test_resnet": [(32, 8), (48, 4), (192, 2)],
    "timm/test_vit": [(64, 2)] * 4,
}


@pytest.mark.parametrize("name", SHAPES)
def test_networks_take_size_and_channels_and_tell_their_layers(name: str) -> None:
    spec = NetworkSpec(name, 10, in_channels=1, image_size=(32, 32))
    network, images = build_network(spec), torch.zeros(2, 1, 32, 32)
    check_network(network, spec, (32, 32))
    layers = resolve_layers(network, ("stages", "pooled"), images)
    with torch.no_grad():
        seen = Watched(network.eval(), layers)(images)
    assert [tuple(maps.shape[1:3]) for maps in seen.features["stages"]] == SHAPES[name]
    assert all(maps.shape[2] == maps.shape[3] for maps in seen.features["stages"])
    (pooled,), (_, head) = seen.features["pooled"], classifier_of(network)
    assert pooled.shape == (2, head.in_features) and head.out_features == 10


def test_channels_that_come_last_come_first() -> None:
    class Last(torch.nn.Identity):
        output_fmt = "NHWC"

    assert map_of(Last())(torch.zeros(2, 4, 4, 7)).shape == (2, 7, 4, 4)
    assert map_of(torch.nn.Identity())(torch.zeros(2, 7, 4, 4)).shape == (2, 7, 4, 4)


def test_tokens_as_maps_keep_their_places() -> None:
    network = build_network(NetworkSpec("timm/test_vit", 3, image_size=(32, 32))).eval()
    layers = resolve_layers(network, ("last_map",), torch.zeros(2, 3, 32, 32))
    tokens: list[torch.Tensor] = []
    hook = network.get_submodule(layers["last_map"][0]).register_forward_hook(lambda m, i, out: tokens.append(out))
    with torch.no_grad():
        (maps,) = Watched(network, layers)(torch.randn(1, 3, 32, 32)).features["last_map"]
    hook.remove()
    assert torch.equal(maps[0, :, 1, 0], tokens[0][0, network.num_prefix_tokens + 2])


def test_chain_of_timm_and_others_is_finished_reused_and_read(tiny_run) -> None:
    line = [
        "stage.deliver=student",
        "stage.student.guide=teacher",
        "model.teacher=timm/test_vit",
        "kd=fitnet",
        "epochs=1",
    ]
    line += ["model.student=timm/test_efficientnet", "dataset.resize=32"]
    run = tiny_run(*line)
    assert run.statuses() == {"teacher": "trained", "student": "trained"}
    assert tiny_run(*line, "kd.weight=2").statuses() == {"teacher": "reused", "student": "trained"}
    assert load_stage(run.folder, "teacher").network(torch.zeros(1, 1, 32, 32)).shape == (1, 3)


def test_errors_of_names_and_weights_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KdxError, match=r"^model 'timm/resnet19': timm has no such network; did you mean 'resnet1"):
        build_network(NetworkSpec("timm/resnet19", 3))
    with pytest.raises(
        KdxError,
        match=r"^model 'timm/resnet18' with pretrained=true: timm/resnet18.a1_in1k is not in the hub's cache and download=false",
    ):
        build_network(NetworkSpec("timm/resnet18", 3, pretrained=True), download=False)
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(KdxError, match=r"needs the package timm: pip install -e \"\.\[timm\]\""):
        build_network(NetworkSpec("timm/resnet18", 3))


def test_weights_come_from_the_hubs_cache_and_tell_their_licence(tiny_run, tmp_path: Path, monkeypatch, caplog) -> None:
    from safetensors.torch import save_file

    source = build_network(NetworkSpec("timm/test_resnet", 1000))
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *a, **k: asked.append(k) or str(tmp_path / "model.safetensors")
    )
    caplog.set_level(logging.INFO)
    settings = settings_of(
        "model.teacher=timm/test_resnet", "stage.teacher.pretrained=true", "download=false", "dataset.resize=32"
    )
    context = make_run_context(settings, load_dataset(settings))
    network = check_stage(context, settings.stage("teacher"), {})
    assert torch.equal(network.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
    assert {k["local_files_only"] for k in asked} == {True}
    assert "timm/test_resnet: weights r160_in1k, licence apache-2.0" in caplog.text
    run = tiny_run("model.teacher=timm/test_resnet", "stage.teacher.pretrained=true", "dataset.resize=32", "epochs=1")
    file = hash_file(tmp_path / "model.safetensors")
    assert ("pretrained", "timm/test_resnet", file) in [tuple(origin.values()) for origin in run.summary["lineage"]]
    tell_licence("timm/convnextv2_atto")
    assert "cc-by-nc-4.0, which allows no commercial use" in caplog.text


def test_torchvisions_vit_at_another_size_is_one_line() -> None:
    spec = NetworkSpec("vit_b_32", 3)
    with pytest.raises(KdxError, match=r"network 'vit_b_32' fails on 64x64 images: .*; set dataset.resize=224$"):
        check_network(build_network(spec), spec, (64, 64))
