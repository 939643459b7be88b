"""The vision transformers under the name by which configs and finished runs know them, e.g. `kdx.vit:mini`."""

from kdx.models.vit import mini as mini
from kdx.models.vit import mini_distilled as mini_distilled
from kdx.models.vit import small as small
from kdx.models.vit import tiny as tiny
from kdx.models.vit import tiny_distilled as tiny_distilled
