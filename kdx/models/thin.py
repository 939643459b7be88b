"""Thin ResNets for 32-pixel images (1512.03385, section 4.2): small enough to sweep on two CPU cores.

Name them as `model.student=kdx.thin:resnet8`.
"""

from torch import Tensor, nn
from torch.nn.functional import relu


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a strided 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm2(self.conv2(relu(self.norm1(self.conv1(images)))))
        return relu(features + self.shortcut(images))


class ThinResNet(nn.Module):
    """6n + 2 layers in three stages of 16, 32 and 64 channels; (N, in_channels, H, W) -> (N, num_classes)."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.stage1 = _stage(blocks, 16, 16, stride=1)
        self.stage2 = _stage(blocks, 16, 32, stride=2)
        self.stage3 = _stage(blocks, 32, 64, stride=2)
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stage3(self.stage2(self.stage1(self.stem(images))))
        return self.classifier(features.mean(dim=(2, 3)))


def resnet8(num_classes: int, in_channels: int) -> ThinResNet:
    """78 thousand weights with ten classes."""
    return ThinResNet(1, num_classes, in_channels)


def resnet20(num_classes: int, in_channels: int) -> ThinResNet:
    """0.27 million weights with ten classes."""
    return ThinResNet(3, num_classes, in_channels)


def resnet56(num_classes: int, in_channels: int) -> ThinResNet:
    """0.86 million weights with ten classes."""
    return ThinResNet(9, num_classes, in_channels)


def _stage(blocks: int, channels_in: int, channels: int, stride: int) -> nn.Sequential:
    first = Block(channels_in, channels, stride)
    return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))
