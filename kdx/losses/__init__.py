"""What a network is trained to minimise: one file a method."""

from kdx.losses.attention import AttentionTransfer as AttentionTransfer
from kdx.losses.cc import CorrelationCongruence as CorrelationCongruence
from kdx.losses.crd import CRD as CRD
from kdx.losses.ctkd import CTKD as CTKD
from kdx.losses.dist import DIST as DIST
from kdx.losses.distillation import Distillation as Combined  # noqa: F401  its name in a config
from kdx.losses.dkd import DKD as DKD
from kdx.losses.fitnet import FitNet as FitNet
from kdx.losses.hard_label import HardLabel as HardLabel
from kdx.losses.hinton import Hinton as Hinton
from kdx.losses.hinton import KnowledgeDistillationLoss as KnowledgeDistillationLoss
from kdx.losses.mld import MLD as MLD
from kdx.losses.mlld import MLLD as MLLD
from kdx.losses.nkd import NKD as NKD
from kdx.losses.pkt import PKT as PKT
from kdx.losses.pskd import PSKD as PSKD
from kdx.losses.reviewkd import ReviewKD as ReviewKD
from kdx.losses.rkd import RKD as RKD
from kdx.losses.rld import RLD as RLD
from kdx.losses.sp import SimilarityPreserving as SimilarityPreserving
from kdx.losses.ttm import TTM as TTM
from kdx.losses.ttm import WTTM as WTTM
from kdx.losses.vid import VID as VID
from kdx.losses.wsld import WSLD as WSLD
