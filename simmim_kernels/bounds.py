"""Variational bounds on mutual information, in nats, as functions of PairwiseScores.

Every bound is a few lines over the joint scores and O(N) statistics of the marginal ones, so that it runs on
every backend and autograd gives its exact gradient. Conventions: `scores` (N, M) have anchors for rows and candidates
for columns; "off" is the set of marginal pairs, all but the joint ones; Poole et al. 2019 is arXiv:1905.06922, whose
name for a bound is given as I_NAME. The last functions read the labels and the predictions of a classifier instead.

All return a 0-dim tensor, float64 for float64 features and float32 otherwise, to be maximised (the lower
bounds) or minimised (`leave_one_out` and `club` bound from above). They raise ValueError where the scores have
no joint pairs (fewer columns than rows and no positives) or, if they need one, no marginal pair.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .operator import sharded
from .problem import compute_dtype, validation
from .scores import PairwiseScores

# Of its ceiling, log M, in nats: `infonce` that near says no more than that the information is as large, or larger.
SATURATED_WITHIN = 0.1

_Bound = TypeVar("_Bound", bound=Callable[..., Any])


def _of_scores(bound: _Bound) -> _Bound:
    """Refuses what is no PairwiseScores, as a matrix of scores or features are not, and says what makes it one."""

    @functools.wraps(bound)
    def checked(scores, *args, **params):
        validation.scores(scores, PairwiseScores)
        return bound(scores, *args, **params)

    return cast(_Bound, checked)


@_of_scores
def infonce(scores: PairwiseScores, symmetric: bool = False) -> Tensor:
    """mean(s_ii - logsumexp_j s_ij) + log M, at most log M (van den Oord et al. 2018; I_NCE of Poole et al. 2019).

    symmetric=True averages over both directions, from one pass; it needs the positives to be a permutation,
    as the diagonal of a square matrix is. A value within 0.1 nat of log M is saturated: the information is
    that or more, and only more columns can tell.
    """
    ceiling = math.log(scores.shape[1])
    if not validation.flag(symmetric, "symmetric"):
        return ceiling - scores.mean(scores.cross_entropy(1))
    n, m = scores._own_shape
    if n != m:
        raise ValueError(f"scores must be square for symmetric=True, got shape ({n}, {m})")
    return ceiling - scores.mean(scores._cross_entropies("both").mean(0))


@_of_scores
def dv(scores: PairwiseScores) -> Tensor:
    """mean s_ii - logmeanexp_off s (Donsker and Varadhan 1983; I_DV of Poole et al. 2019).

    Biased by the log of the batch's own mean.
    """
    return scores.mean(scores.joint) - _marginal(scores, "dv").logmeanexp((0, 1))


@_of_scores
def mine(scores: PairwiseScores, log_running_mean: Tensor | Callable[[Tensor], Tensor]) -> Tensor:
    """The value of `dv` with the gradient of MINE (Belghazi et al. 2018, sec. 3.2).

    In the gradient a running mean of the partition function stands for the batch's own. `log_running_mean` gives it by
    its log (), or as a function from the log of the batch's partition function to that;
    MutualInformation(bound="mine") keeps it.
    """
    joint, partition = scores.mean(scores.joint), _marginal(scores, "mine").logmeanexp((0, 1))
    if callable(log_running_mean):
        log_running_mean = log_running_mean(partition.detach())
    log_running_mean = validation.scalar(log_running_mean, "log_running_mean", partition)
    objective = joint - (partition - log_running_mean.detach()).exp()
    return _value_with_gradient_of(joint - partition, objective)


@_of_scores
def nwj(scores: PairwiseScores) -> Tensor:
    """mean s_ii - mean_off e^(s - 1) (Nguyen, Wainwright and Jordan 2010; I_NWJ of Poole et al. 2019; MINE-f).

    The optimal critic is 1 + log(p(x, y) / p(x)p(y)).
    """
    return scores.mean(scores.joint) - (_marginal(scores, "nwj").logmeanexp((0, 1)) - 1).exp()


@_of_scores
def tuba(scores: PairwiseScores, log_baseline: float | Tensor) -> Tensor:
    """1 + mean(s_ii - log a_i) - mean_off(e^s_ij / a_i) with log a = log_baseline, (N,) or one number.

    Barber and Agakov, unnormalised and made tractable (I_TUBA of Poole et al. 2019). `nwj` is log a = 1.
    """
    marginal, joint = _marginal(scores, "tuba"), scores.joint
    log_baseline = _per_row(log_baseline, "log_baseline", joint)
    rows = marginal.logsumexp(1) - log_baseline
    shares = (rows - _count(marginal).log()).exp().sum()
    return 1 + scores.mean(joint - log_baseline) - scores.over_ranks(shares)


@_of_scores
def js(scores: PairwiseScores) -> Tensor:
    """1 + mean s_ii - mean_off e^s, with the gradient of `js_divergence` (I_JS of Poole et al. 2019).

    The critic optimal for the Jensen-Shannon objective is log(p(x, y) / p(x)p(y)), so that it is read by tuba
    with log a = 0; read by nwj, it would give I - 1/e.
    """
    value = 1 + scores.mean(scores.joint) - _marginal(scores, "js").logmeanexp((0, 1)).exp()
    return _value_with_gradient_of(value, js_divergence(scores))


@_of_scores
def js_divergence(scores: PairwiseScores) -> Tensor:
    """-mean softplus(-s_ii) - mean_off softplus(s): the objective of Deep InfoMax (Hjelm et al. 2019).

    Not nats of mutual information: a Jensen-Shannon divergence, shifted and scaled, at most 0.
    """
    marginal = _marginal(scores, "js_divergence")
    joint = scores.mean(torch.nn.functional.logsigmoid(scores.joint))
    return joint - marginal.sum((0, 1), fn="softplus") / _count(marginal)


@_of_scores
def smile(scores: PairwiseScores, tau: float = 5.0) -> Tensor:
    """mean s_ii - logmeanexp_off clamp(s, -tau, tau), with the gradient of `js_divergence`.

    Song and Ermon 2020 (arXiv:1910.06222). tau > 0, in nats. Neither an upper nor a lower bound for finite tau.
    """
    tau = validation.positive_number(tau, "tau", dtype=scores.dtype)
    value = scores.mean(scores.joint) - _marginal(scores, "smile").clamp(-tau, tau).logmeanexp((0, 1))
    return _value_with_gradient_of(value, js_divergence(scores))


@_of_scores
def interpolated(scores: PairwiseScores, alpha: float, log_baseline: float | Tensor) -> Tensor:
    """I_alpha, between `infonce` (alpha 1) and `tuba` (alpha 0): Poole et al. 2019, in its leave-one-out form.

        1 + mean_off(s_ii - log B_ij) - mean_off(e^s_ij / B_ii)
        B_ij = alpha mean_{k != j} e^s_ik + (1 - alpha) e^log_baseline_i

    with `log_baseline` (N,) or one number. In log space throughout, in two passes. A column that holds all but 1e-7
    (float32) of what its row sums, and is not the row's joint pair, cannot be told from 1: alpha near 1 with such
    scores gives inf. Raises ValueError for clamped scores, where log B_ij is not a pointwise function of a score and a
    row bias.
    """
    alpha = validation.fraction(alpha, "alpha")
    if alpha == 0:
        return tuba(scores, log_baseline)
    marginal, joint = _marginal(scores, "interpolated"), scores.joint
    log_baseline = _per_row(log_baseline, "log_baseline", joint)
    off = marginal.logsumexp(1)
    count = marginal.count(1).to(scores.dtype)
    log_share = math.log(alpha) - count.log()
    floor = log_baseline + math.log(1 - alpha) if alpha < 1 else torch.full_like(log_baseline, -math.inf)
    # B_ii sums the row without its joint pair, so no difference is taken there. B_ij is the whole row's sum T_i
    # less the share of column j: log B_ij = log T_i + log1mexp(s_ij + log_share - log T_i).
    log_b_joint = torch.logaddexp(off + log_share, floor)
    log_total = torch.logaddexp(log_b_joint, joint + log_share)
    left = marginal._shifted(log_share - log_total).sum(1, fn="log1mexp")
    pairs = scores.over_ranks(count.sum())
    log_ratio = scores.over_ranks((count * (joint - log_total) - left).sum()) / pairs
    return 1 + log_ratio - scores.over_ranks((off - log_b_joint).exp().sum()) / pairs


@_of_scores
def flo(scores: PairwiseScores, u: float | Tensor) -> Tensor:
    """1 - mean(u_i + e^-u_i mean_{j != i} e^(s_ij - s_ii)), with u (N,) or one number.

    Fenchel-Legendre optimisation, Guo et al. 2022 (arXiv:2107.01131). The optimal u_i is
    logmeanexp_{j != i} s_ij - s_ii.
    """
    marginal, joint = _marginal(scores, "flo"), scores.joint
    u = _per_row(u, "u", joint)
    return 1 - scores.mean(u + (marginal.logmeanexp(1) - joint - u).exp())


@_of_scores
def leave_one_out(scores: PairwiseScores) -> Tensor:
    """mean(s_ii - logmeanexp_{j != i} s_ij): an upper bound where s = log p(y | x) (Poole et al. 2019)."""
    return scores.mean(scores.joint - _marginal(scores, "leave_one_out").logmeanexp(1))


@_of_scores
def club(scores: PairwiseScores) -> Tensor:
    """mean s_ii - mean_ij s_ij over all pairs: an upper bound where s = log p(y | x) (Cheng et al. 2020)."""
    return scores.mean(scores.joint) - scores.sum((0, 1), fn="identity") / _count(scores)


@_of_scores
def barber_agakov(scores: PairwiseScores, prior: Tensor | None = None) -> Tensor:
    """H(Y) + mean log q(y_i | x_i), q the softmax of a row: Barber and Agakov 2003; I_BA of Poole et al. 2019.

    The columns are all values that Y can take, as the rows of a classifier's weight matrix are, and `positives` the
    labels: the value is the entropy of the classes less the cross entropy of their predictions. H(Y) is that of
    `prior` (M,), the probability of each class where the rows were drawn, or else of the labels' own frequencies,
    label_entropy: at most log N, so that more classes than rows want a prior. With the diagonal for its labels this
    is `infonce` of a square matrix.
    """
    cross_entropy = scores.mean(scores.cross_entropy(1))
    if prior is None:
        labels = scores.positives
        counts = scores.over_ranks(_label_counts(labels, scores.shape[1], torch.ones_like(labels)))
        return _entropy_of_counts(counts, scores.dtype) - cross_entropy
    prior = validation.probabilities(prior, "prior", scores.shape[1], cross_entropy)
    return entropy(prior.to(scores.dtype)) - cross_entropy


@_of_scores
def readouts(scores: PairwiseScores, tau: float = 5.0) -> dict[str, Tensor]:
    """What one critic reads as by several bounds, in nats and without gradient, from two passes over its scores.

    "plug_in" is mean s_ii, the information itself where s = log(p(x, y) / p(x)p(y)); "ceiling" is log M, which
    `infonce` cannot exceed. `nwj` expects 1 + log ratio, `js` and `smile` the log ratio: side by side they show
    how far a critic is from either. All are (); tau is that of `smile`.
    """
    tau = validation.positive_number(tau, "tau", dtype=scores.dtype)
    with torch.no_grad():
        marginal = _marginal(scores, "readouts")
        joint, rows = scores.joint, marginal.logsumexp(1)
        mean, partition = scores.mean(joint), sharded.logsumexp(rows, scores._shards) - _count(marginal).log()
        return {
            "infonce": scores.mean(joint - torch.logaddexp(joint, rows)) + math.log(scores.shape[1]),
            "nwj": mean - (partition - 1).exp(),
            "dv": mean - partition,
            "js": 1 + mean - partition.exp(),
            "smile": mean - marginal.clamp(-tau, tau).logmeanexp((0, 1)),
            "plug_in": mean,
            "ceiling": torch.full_like(mean, math.log(scores.shape[1])),
        }


def entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p (), in nats, of probabilities (C,) that sum to 1; 0 log 0 is 0."""
    return torch.special.entr(validation.weights(probabilities, "probabilities")).sum()


def label_entropy(target: Tensor, classes: int, ignore_index: int = -100, dtype: torch.dtype = torch.float32) -> Tensor:
    """The entropy () of the frequencies of labels `target` (N,), in nats: integers in [0, classes), or ignore_index.

    The plug-in estimate, low by about (classes - 1) / 2N (Miller 1955) and never above log N. 0 where every label
    is ignored. `dtype` is that of the result.
    """
    classes = validation.integer(classes, "classes", 1)
    ignore_index = validation.integer(ignore_index, "ignore_index")
    validation.floating_dtype(dtype, "dtype")
    target = validation.labels(target, "target", classes, ignore_index)
    counted = target != ignore_index
    return _entropy_of_counts(_label_counts(target.where(counted, 0), classes, counted.long()), dtype)


def _label_counts(target: Tensor, classes: int, weight: Tensor) -> Tensor:
    """(C,) int64, of labels (N,) that count as often as their weight (N,) int64 says."""
    return torch.zeros(classes, dtype=torch.int64, device=target.device).index_add(0, target, weight)


def _entropy_of_counts(counts: Tensor, dtype: torch.dtype) -> Tensor:
    return entropy(counts.to(dtype) / counts.sum().clamp(min=1))


def conditional_entropy(logits: Tensor) -> Tensor:
    """mean_i -sum_j p_ij log p_ij, in nats, with p the softmax of each row of the logits (N, C).

    What `prediction_information` wants small. Alone it is minimal for one and the same sure answer to everything.
    """
    log_p = _log_softmax(logits)
    return -(log_p.exp() * log_p).sum(1).mean()


def prediction_information(logits: Tensor) -> Tensor:
    """H(mean_i p_i) - mean_i H(p_i), in nats: what a classifier's answers tell of its inputs, without any label.

    Bridle et al. 1991 ("Unsupervised classifiers, mutual information and phantom targets"); the objective of
    RIM without its penalty (Krause et al. 2010). p is the softmax of each row of the logits (N, C), whose
    classes may be ruled out by -inf. Between 0 and log min(N, C): the information of the classifier's own joint
    distribution over these N inputs, which bounds that of no true label.
    """
    log_p = _log_softmax(logits)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))
    # The mean divergence of p_i from the mean: equal, and exact near 0, where the difference of entropies cancels.
    return (log_p.exp() * (log_p - log_mean)).sum(1).mean()


def _log_softmax(logits: Tensor) -> Tensor:
    """(N, C) in the compute dtype, finite also where p = 0, so that p log p and its gradient are 0 there."""
    validation.features(logits, "logits")
    dtype = compute_dtype(logits.dtype)
    return logits.log_softmax(1, dtype=dtype).clamp(min=torch.finfo(dtype).min)


def _marginal(scores: PairwiseScores, bound: str) -> PairwiseScores:
    if scores.shape[1] == 1:
        raise ValueError(
            f"scores must have at least two columns for {bound}, which needs marginal pairs; got shape {scores.shape}"
        )
    return scores.marginal


def _count(scores: PairwiseScores) -> Tensor:
    return scores.count((0, 1)).to(scores.dtype)


def _per_row(value: float | Tensor, name: str, like: Tensor) -> Tensor:
    """(N,), as `like` is, from a number, a tensor of one element, or a tensor of shape (N,) or (N, 1)."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return validation.scalar(value, name, like).expand(like.shape)
    if value.dim() == 2 and value.shape[1] == 1:
        value = value.squeeze(1)
    return validation.vector(value, name, len(like), like)


def _value_with_gradient_of(value: Tensor, objective: Tensor) -> Tensor:
    return value.detach() + (objective - objective.detach())
