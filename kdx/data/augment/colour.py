"""What becomes of pixel values, each image by numbers of its own: images (B, C, H, W) of 0-255."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.augmentations import Jitter
from kdx.data.augment.frame import Frame, Rows


def jitter(images: Tensor, numbers: Rows, options: Jitter, frame: Frame) -> Tensor:
    """Float images of other brightness and contrast, by numbers (B, 2) of 0-1 from least to most."""
    change = 2 * numbers.there - 1
    brightness = (1 + options.brightness * change[:, 0]).view(-1, 1, 1, 1)
    contrast = (1 + options.contrast * change[:, 1]).view(-1, 1, 1, 1)
    images = images.float() * brightness
    centre = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - centre) * contrast + centre).clamp(0, 255)


def blend(images: Tensor, others: Tensor, own: Tensor, their: Tensor) -> Tensor:
    """uint8 of `own` times images plus `their` times others, cut to 0-255; fractions are dropped."""
    return (own * images + their * others).clamp(0, 255).to(images.dtype)


def grey(images: Tensor) -> Tensor:
    """The brightness (B, 1, H, W) of uint8 images by ITU-R 601; grey ones as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(images.dtype).unsqueeze(1)


def blurred(images: Tensor) -> Tensor:
    """Inner pixels as a mean of 3x3, the middle counting five times; those of the edge stay."""
    channels = images.shape[1]
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    kernel = (kernel / kernel.sum()).expand(channels, 1, 3, 3)
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = F.conv2d(images.float(), kernel, groups=channels).round().to(images.dtype)
    return result


def stretched(images: Tensor) -> Tensor:
    """Each channel from its darkest to its brightest pixel stretched to 0-255; one of a single value stays."""
    low, high = (ends(images, (2, 3), keepdim=True).float() for ends in (torch.amin, torch.amax))
    scale = 255 / (high - low)
    flat = high == low
    low, scale = low.masked_fill(flat, 0), scale.masked_fill(flat, 1)
    return ((images - low) * scale).clamp(0, 255).to(images.dtype)


def equalized(images: Tensor) -> Tensor:
    """Each channel's histogram made flat, as PIL does it: by a table of 256 values for each."""
    rows = images.flatten(2).flatten(0, 1).long()  # (B C, H W)
    count = len(rows)
    cells = rows + 256 * torch.arange(count, device=images.device).unsqueeze(1)
    ones = torch.ones(1, dtype=torch.long, device=images.device).expand(cells.numel())
    histogram = torch.zeros(256 * count, dtype=torch.long, device=images.device).scatter_add_(0, cells.flatten(), ones)
    histogram = histogram.view(count, 256)
    brightest = histogram.gather(1, rows.amax(dim=1, keepdim=True))
    step = (rows.shape[1] - brightest) // 255
    table = (histogram.cumsum(1) - histogram + step // 2) // step.clamp(min=1)
    made = table.clamp(0, 255).gather(1, rows)
    return torch.where(step == 0, rows, made).to(images.dtype).view(images.shape)
