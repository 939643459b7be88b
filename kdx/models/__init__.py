"""Networks by name, and what is done to them before training."""

from kdx.models.networks import get_resnet_model as get_resnet_model
