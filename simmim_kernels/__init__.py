"""Pairwise critic scores, mutual-information bounds and contrastive losses without the N x M matrix."""

from . import bounds
from .backends import backends, use_backend
from .critics import BilinearCritic, CosineCritic, DotCritic, GaussianCritic, MLPCritic, SeparableCritic
from .estimation import ConditionalEstimate, MutualInformationEstimate, estimate, estimate_conditional
from .losses import (
    ClipLoss,
    DCLLoss,
    InfoNCELoss,
    LinearCrossEntropyLoss,
    NTXentLoss,
    SigLipLoss,
    SupConLoss,
    clip_loss,
    dcl_loss,
    info_nce_loss,
    linear_cross_entropy,
    nt_xent_loss,
    siglip_loss,
    supcon_loss,
)
from .models import MutualInformation, SimMIM, SimMIMOutput
from .multitask import MultiTaskOutput, MultiTaskSimMIM, transfer
from .operator.global_batch import GlobalBatch
from .scores import PairwiseScores
from .version import __version__

__all__ = [
    "BilinearCritic",
    "ClipLoss",
    "ConditionalEstimate",
    "CosineCritic",
    "DCLLoss",
    "DotCritic",
    "GaussianCritic",
    "GlobalBatch",
    "InfoNCELoss",
    "LinearCrossEntropyLoss",
    "MLPCritic",
    "MultiTaskOutput",
    "MultiTaskSimMIM",
    "MutualInformation",
    "MutualInformationEstimate",
    "NTXentLoss",
    "PairwiseScores",
    "SeparableCritic",
    "SigLipLoss",
    "SimMIM",
    "SimMIMOutput",
    "SupConLoss",
    "__version__",
    "backends",
    "bounds",
    "clip_loss",
    "dcl_loss",
    "estimate",
    "estimate_conditional",
    "info_nce_loss",
    "linear_cross_entropy",
    "nt_xent_loss",
    "siglip_loss",
    "supcon_loss",
    "transfer",
    "use_backend",
]
