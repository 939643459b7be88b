"""Pictures of a finished run: feature maps of a stage, and what two stages look at, side by side."""

from pathlib import Path

import torch
from torch import Tensor, nn

from kdx.deploy.load import Card
from kdx.deploy.run_loader import load_data, load_stage, roles_of
from kdx.errors import KdxError, suggest
from kdx.text import harmless
from kdx.visualize.attention import attends, attention_maps, save_attention_maps
from kdx.visualize.contact_sheet import label_names
from kdx.visualize.feature_maps import features_of, label_text, last_map_layer, save_feature_maps
from kdx.visualize.grad_cam import grad_cam
from kdx.visualize.overlay import draw_overlay

TEACHER = "teacher"


def draw_run(
    run_dir: Path,
    role: str,
    layer: str | None,
    samples: int,
    compare: str | None,
    cam: bool,
    data_dir: str | None,
    network: str | None,
    data: str | None,
) -> str:
    """Pictures of a finished run, into the stage's folder; what was drawn, in words."""
    stage = load_stage(run_dir, role, network)
    roles = roles_of(run_dir)
    if compare is not None and compare not in (TEACHER, *roles):  # a run without a teacher is drawn by itself
        raise KdxError(f"compare={compare}: choose {', '.join(roles)}{suggest(compare, roles)}")
    dataset = load_data(stage, data_dir, data)
    pixels, labels = dataset.test.of_each_class(samples)
    images = Card.of(stage.meta, stage.checkpoint).prepared.on(torch.device("cpu"))(pixels)
    chosen = layer or last_map_layer(stage.network, images)
    if chosen is None and not attends(stage.network):
        raise KdxError(f"role={role}: {stage.meta['network']} has no layer that gives maps")
    folder = run_dir / role / "visualizations" / (chosen or "attention")  # the stage may lie in another run's folder
    if chosen is None:
        drawn = save_attention_maps(stage.network, [(images, labels)], folder, samples)
    else:
        drawn = save_feature_maps(stage.network, [(images, labels)], chosen, folder, samples)
    if compare is not None and compare != role and compare in roles:
        other = load_stage(run_dir, compare, network)
        stages = {compare: (other, layer or last_map_layer(other.network, images)), role: (stage, chosen)}
    else:
        stages = {role: (stage, chosen)}
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        panels: dict[str, Tensor] = {}
        for name, (shown, at) in stages.items():
            panels |= _panels(name, shown.network, at, image[None], label if cam else None)
        path = folder / f"side_by_side_{number}_label_{label_text(label)}.png"
        draw_overlay(pixels[number], panels, path, label_names(label, dataset))
        drawn.append(path)
    said = [f"{f'layer {chosen}' if chosen else 'attention'} of {role}: {stage.meta['network']}"]
    if chosen is not None and max(features_of(stage.network, images[:1], chosen).shape[2:]) == 1:
        said.append("its maps are of one pixel and show no place: choose an earlier layer")
    return "\n".join([*said, *(f"wrote {harmless(str(path))}" for path in drawn)])


def _panels(name: str, network: nn.Module, layer: str | None, image: Tensor, label: Tensor | None) -> dict[str, Tensor]:
    """What a stage looks at in an image (1, C, H, W): a layer's mean map and, for a label, its Grad-CAM; of a ViT
    without a layer its attention."""
    if layer is None:
        return {f"{name}: attention rollout": attention_maps(network, image)[0][0]} if attends(network) else {}
    panels = {f"{name}: mean of {layer}": features_of(network, image, layer)[0].mean(dim=0)}
    if label is not None:
        panels[f"{name}: Grad-CAM"] = grad_cam(network, image, layer, label)
    return panels
