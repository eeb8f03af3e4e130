"""What a trained critic reads as on pairs that it has not seen, with the influence of every pair on every bound.

All in nats. Nothing here trains, and nothing holds a matrix of scores.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from .. import bounds
from ..scores import PairwiseScores

TAU = 5.0


@torch.no_grad()
def calibrated_scores(critic: nn.Module, x: Tensor, y: Tensor, reference_y: Tensor) -> PairwiseScores:
    """s(x_i, y_j) - log a(x_i) with log a(x) = logmeanexp of s(x, .) over `reference_y` (M, dy).

    InfoNCE determines a critic up to a function of x. This fixes that function, so that e^s averages to one over
    the reference and the scores estimate log(p(x, y) / p(x)p(y)), as the other bounds expect. Where the reference
    is independent of (x, y), log a is a baseline like any other and TUBA, NWJ and DV stay lower bounds.
    """
    return critic(x, y)._shifted(-critic(x, reference_y).logmeanexp(1))


@torch.no_grad()
def influences(scores: PairwiseScores) -> dict[str, tuple[float, Tensor]]:
    """By bound, its value on square scores s ~ log(p(x, y) / p(x)p(y)) and the influence (N,) of each pair on it.

    The value is a function of the pairs' empirical distribution; the influence is its derivative, times N, in the
    weight of pair i, which counts as row i and as column i of the marginal term. It averages to zero, and its
    standard deviation over sqrt(N) is the standard error over pairs: the infinitesimal jackknife (Efron 1981,
    Biometrika 68:589), which is the bootstrap to first order and takes one pass where that takes one a resample.

    Of `nwj`, the critic is 1 + s; its value is `js` of s.
    """
    n, _ = scores.shape
    joint, marginal = scores.joint.double(), scores.marginal
    clamped = marginal.clamp(-TAU, TAU)
    # Means of e^s over the marginal pairs of each row and of each column.
    rows, columns = (t.double().exp() / (n - 1) for t in marginal.logsumexps())
    rows_clamped, columns_clamped = (t.double().exp() / (n - 1) for t in clamped.logsumexps())
    partition, partition_clamped = rows.mean(), rows_clamped.mean()
    read = {name: value.item() for name, value in bounds.readouts(scores, TAU).items()}

    row_total = scores.logsumexp(1)
    chosen = scores._shifted(-row_total).logsumexp(0).double().exp()  # how much of the N rows' softmax column j holds
    from_joint = joint - joint.mean()
    js = from_joint - (rows + columns - 2 * partition)
    terms = joint - row_total.double()
    return {
        "infonce": (read["infonce"], terms - terms.mean() - (chosen - chosen.mean())),
        "dv": (read["dv"], from_joint - ((rows + columns) / partition - 2)),
        "nwj": (read["js"], js),
        "smile": (read["smile"], from_joint - ((rows_clamped + columns_clamped) / partition_clamped - 2)),
    }


@torch.no_grad()
def pointwise(scores: PairwiseScores) -> np.ndarray:
    """(N,) s_ii - logmeanexp_j s_ij of square scores: the terms whose mean is InfoNCE."""
    n, _ = scores.shape
    return (scores.joint.double() - scores.logsumexp(1).double()).cpu().numpy() + math.log(n)
