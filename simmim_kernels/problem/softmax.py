"""Entropies of softmaxes in nats, without gradient, and how those of parts make that of the whole."""

import math

import torch
from torch import Tensor

from .pointwise import logsumexp_over_first


def entropy_of_rows(s: Tensor) -> Tensor:
    """(N,) of the softmax of each row of scores (N, M); 0 of a row all of whose scores are -inf."""
    log_p = s.log_softmax(1)
    return (log_p.exp() * -log_p).where(log_p > -math.inf, 0).sum(1)


def merged_entropy(logsumexps: Tensor, entropies: Tensor) -> Tensor:
    """(N,) of the softmaxes over what K parts (K, N) hold together; 0 where they hold nothing.

    H = sum_k w_k (H_k - log w_k), with each part's share w_k of the whole (Shannon 1948, sec. 6, third property). No
    large numbers cancel, as they would in the log-sum-exp less the mean score.
    """
    log_shares = logsumexps - logsumexp_over_first(logsumexps)
    shares = log_shares.exp()
    return (shares * (entropies - log_shares)).where(shares > 0, 0).sum(0)


def entropy_with(score: Tensor, logsumexp: Tensor, entropy: Tensor) -> Tensor:
    """(N,) of the softmaxes over what has these log-sum-exps and entropies, and one more score each; all (N,)."""
    parts = torch.stack([logsumexp.detach(), score.detach()])
    return merged_entropy(parts, torch.stack([entropy, torch.zeros_like(entropy)]))
