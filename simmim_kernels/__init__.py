"""Pairwise critic scores, mutual-information bounds and contrastive losses without the N x M matrix."""

from . import bounds
from .alignment import AlignmentUniformityLoss, alignment, alignment_uniformity_loss, uniformity
from .backends import backends, use_backend
from .cached import cached_step
from .critics import BilinearCritic, CosineCritic, DotCritic, GaussianCritic, MLPCritic, SeparableCritic
from .decoupled import DCLLoss, DCLWLoss, dcl_loss, mises_fisher_weights
from .entropy import softmax_entropy
from .estimation import ConditionalEstimate, MutualInformationEstimate, estimate, estimate_conditional
from .labelled_losses import LabelledNTXentLoss, SupConLoss, labelled_nt_xent_loss, supcon_loss
from .losses import (
    ClipLoss,
    InfoNCELoss,
    LinearCrossEntropyLoss,
    NTXentLoss,
    SigLipLoss,
    clip_loss,
    info_nce_loss,
    linear_cross_entropy,
    nt_xent_loss,
    siglip_loss,
)
from .models import MutualInformation, SimMIM, SimMIMOutput
from .multitask import MultiTaskOutput, MultiTaskSimMIM, transfer
from .operator.global_batch import GlobalBatch
from .queue import Queue
from .ranking import RankingLoss, guided_ranking_loss, ranking_loss
from .scores import PairwiseScores
from .version import __version__

__all__ = [
    "AlignmentUniformityLoss",
    "BilinearCritic",
    "ClipLoss",
    "ConditionalEstimate",
    "CosineCritic",
    "DCLLoss",
    "DCLWLoss",
    "DotCritic",
    "GaussianCritic",
    "GlobalBatch",
    "InfoNCELoss",
    "LabelledNTXentLoss",
    "LinearCrossEntropyLoss",
    "MLPCritic",
    "MultiTaskOutput",
    "MultiTaskSimMIM",
    "MutualInformation",
    "MutualInformationEstimate",
    "NTXentLoss",
    "PairwiseScores",
    "Queue",
    "RankingLoss",
    "SeparableCritic",
    "SigLipLoss",
    "SimMIM",
    "SimMIMOutput",
    "SupConLoss",
    "__version__",
    "alignment",
    "alignment_uniformity_loss",
    "backends",
    "bounds",
    "cached_step",
    "clip_loss",
    "dcl_loss",
    "estimate",
    "estimate_conditional",
    "guided_ranking_loss",
    "info_nce_loss",
    "labelled_nt_xent_loss",
    "linear_cross_entropy",
    "mises_fisher_weights",
    "nt_xent_loss",
    "ranking_loss",
    "siglip_loss",
    "softmax_entropy",
    "supcon_loss",
    "transfer",
    "uniformity",
    "use_backend",
]
