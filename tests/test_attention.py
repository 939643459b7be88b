"""Attention of vision transformers: as the network computes it, rolled out, drawn."""

from pathlib import Path

import pytest
import torch

from kdx.errors import KdxError
from kdx.models.networks import NetworkSpec, build_network
from kdx.visualize import save_attention_maps
from kdx.visualize.attention import attends, attention_maps, attention_of, rollout
from kdx.visualize.run_pictures import draw_run

timm = pytest.importorskip("timm")


def vit(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=(16, 24), patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5, **options
    )


def torchvision_vit() -> torch.nn.Module:
    from torchvision.models import VisionTransformer

    network = VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )
    torch.nn.init.normal_(network.heads.head.weight)
    return network


@pytest.mark.parametrize(
    ("network", "size"), [(vit(), (16, 24)), (torchvision_vit(), (16, 16))], ids=["timm", "torchvision"]
)
def test_looking_changes_nothing_and_rows_sum_to_one(network: torch.nn.Module, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    network.train()
    with torch.no_grad():
        before = network.eval()(images)
        attention = attention_of(network, images)
        after = network(images)
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    tokens = 1 + size[0] * size[1] // 16
    assert attention.shape[1:] == (2, 2, tokens, tokens)
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    torch.testing.assert_close(rollout(attention).sum(-1), torch.ones(2, tokens))
    flow, heads = attention_maps(network, images)
    assert flow.shape == (2, size[0] // 4, size[1] // 4) and heads.shape == (2, 2, size[0] // 4, size[1] // 4)


def test_attention_is_softmax_of_queries_with_keys() -> None:
    network, images = vit(), torch.randn(1, 3, 16, 24)
    seen: list[torch.Tensor] = []
    block = network.blocks[0].attn
    hook = block.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    attention = attention_of(network, images)[0]
    hook.remove()
    queries, keys, _ = block.qkv(seen[0]).reshape(1, -1, 3, 2, 12).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(attention, ((queries @ keys.mT) / 12**0.5).softmax(-1).detach())


def test_rollout_of_known_attention() -> None:
    """Two blocks, two tokens, by hand: half identity, rows normalised, the later block on the left (2005.00928)."""
    first, second = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    attention = torch.stack([first, second])[:, None, None]
    halves = [0.5 * block + 0.5 * torch.eye(2) for block in (first, second)]
    torch.testing.assert_close(rollout(attention)[0], halves[1] @ halves[0])
    torch.testing.assert_close(rollout(attention)[0], torch.tensor([[0.5, 0.5], [0.5, 0.5]]))


def test_without_class_token_patches_are_averaged_and_others_are_refused() -> None:
    flow, _ = attention_maps(vit(class_token=False, global_pool="avg"), torch.randn(1, 3, 16, 24))
    torch.testing.assert_close(flow.sum(), torch.tensor(1.0))
    cnn = build_network(NetworkSpec("kdx.thin:resnet8", 3))
    assert not attends(cnn) and not attends(timm.create_model("test_convnext"))
    with pytest.raises(KdxError, match="has no attention"):
        attention_of(cnn, torch.zeros(1, 3, 8, 8))


def test_pictures_are_written_by_a_run_its_report_and_the_command(tiny_run, tmp_path: Path) -> None:
    paths = save_attention_maps(vit(), [(torch.randn(3, 3, 16, 24), torch.arange(3))], tmp_path, 2)
    assert [path.name for path in paths] == ["attention_0_label_0.png", "attention_1_label_1.png"]
    line = ["model.teacher=kdx.thin:resnet8", "model.student=kdx.vit:mini", "stage.student.guide=teacher"]
    run = tiny_run(*line, "stage.deliver=student", "epochs=1", "visualize.samples=1", "dataset.resize=16")
    assert (run.folder / "student/visualizations/attention_0_label_0.png").stat().st_size > 3000
    said = draw_run(run.folder, "student", None, 1, "teacher", False, None, None, "tests.tiny:dataset")
    assert "attention of student: kdx.vit:mini" in said and "side_by_side_0" in said
