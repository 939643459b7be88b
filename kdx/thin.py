"""The thin networks under the name by which configs and finished runs know them, e.g. `kdx.thin:resnet8`."""

from kdx.models.thin import resnet8 as resnet8
from kdx.models.thin import resnet20 as resnet20
from kdx.models.thin import resnet56 as resnet56
