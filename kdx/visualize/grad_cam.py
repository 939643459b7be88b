"""Where a layer speaks for a class."""

import torch
from torch import Tensor, nn

from kdx.deploy.load import needs
from kdx.models.features import eval_mode


def grad_cam(model: nn.Module, image: Tensor, layer: str, label: Tensor) -> Tensor:
    """Where a layer speaks for a class (1610.02391): (H, W) in 0-1 for one image (1, C, H, W)."""
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        raise needs("grad-cam", "cam", "cam=true") from None
    target = int(label) if label.ndim == 0 else int(label.long().argmax())  # of a multi-label image its first label
    with eval_mode(model), GradCAM(model=model, target_layers=[model.get_submodule(layer)]) as cam:
        heat = cam(input_tensor=image, targets=[ClassifierOutputTarget(target)])
    return torch.from_numpy(heat[0])
