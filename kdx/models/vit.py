"""Vision transformers for 28 to 64 px (DeiT, 2012.12877, with patches of 4 px), built by timm (extra `timm`).

Name them as `model.student=kdx.vit:mini`; the images' sides must be multiples of 4.
"""

from typing import Any

from torch import Tensor, nn

from kdx.errors import KdxError

PATCH = 4  # px; DeiT's 16 would leave a 32 px image four tokens


def small(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """DeiT-S: 12 blocks of 384 features, 21.3 million weights."""
    return _vit(384, 12, 6, num_classes, in_channels, image_size)


def tiny(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """DeiT-Ti with 9 blocks of 192 features, 4.0 million weights."""
    return _vit(192, 9, 3, num_classes, in_channels, image_size)


def mini(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """6 blocks of 96 features, 0.7 million weights."""
    return _vit(96, 6, 3, num_classes, in_channels, image_size)


def tiny_distilled(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """`tiny` with a distillation token; `stage.student.kd=hard stage.student.kd.layers=head_dist` teaches it."""
    return _distilled(192, 9, 3, num_classes, in_channels, image_size)


def mini_distilled(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """`mini` with a distillation token; `stage.student.kd=hard stage.student.kd.layers=head_dist` teaches it."""
    return _distilled(96, 6, 3, num_classes, in_channels, image_size)


def _vit(width: int, depth: int, heads: int, classes: int, channels: int, size: tuple[int, int]) -> nn.Module:
    return _timm_vit().VisionTransformer(**_options(width, depth, heads, classes, channels, size))


def _distilled(width: int, depth: int, heads: int, classes: int, channels: int, size: tuple[int, int]) -> nn.Module:
    """A ViT whose two heads answer together, except while the second one is taught by itself.

    Then, as in the paper, its logits are the class token's, and the layer `head_dist` gives those of the other token.
    """
    from timm.models.deit import VisionTransformerDistilled

    class Distilled(VisionTransformerDistilled):
        def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
            if pre_logits:
                return super().forward_head(x, pre_logits)
            taught = self.training and self.head_dist._forward_hooks  # who teaches a layer watches it
            own, other = self.head(x[:, 0]), self.head_dist(x[:, 1])
            return own if taught else (own + other) / 2

    _timm_vit()
    return Distilled(**_options(width, depth, heads, classes, channels, size))


def _options(width: int, depth: int, heads: int, classes: int, channels: int, size: tuple[int, int]) -> dict[str, Any]:
    if any(side % PATCH for side in size):
        raise KdxError(f"images of {size[0]}x{size[1]} px have no whole patches of {PATCH} px; set dataset.resize")
    numbers = {"embed_dim": width, "depth": depth, "num_heads": heads, "num_classes": classes, "in_chans": channels}
    return numbers | {"img_size": size, "patch_size": PATCH}


def _timm_vit() -> Any:
    try:
        from timm.models import vision_transformer
    except ImportError:
        raise KdxError('needs the package timm: pip install -e ".[timm]"') from None
    return vision_transformer
