"""Entropies of softmaxes beside their log-sum-exps, all in base 2: of a tile's lines, and of parts that are merged.

    H = log2 T - U / T        T = sum_j 2^(s_j - m),  U = sum_j 2^(s_j - m) (s_j - m)

for any m; of a line's largest score, no large numbers cancel. Of parts with log-sum-exps L_k and entropies H_k the
grouping rule H = sum_k w_k H_k - sum_k w_k log2 w_k with w_k = 2^(L_k - L) is the same formula, of L_k for the scores
and with H_k taken from L_k - m in U.
"""

import triton
import triton.language as tl

from .tile import finite, log2

# Of a difference whose exponential is 0 in float32: of -inf, 0 times it would be NaN.
_LEAST = tl.constexpr(-200.0)


@triton.jit
def _entropy(total, weighted):
    """H of T and U; 0 of a line without pairs. A rounding below 0 is 0, and NaN stays."""
    h = tl.where(total == 0.0, 0.0, log2(total) - weighted / total)
    return tl.where(h < 0.0, 0.0, h)


@triton.jit
def log2_sums_and_entropies(s, AXIS: tl.constexpr):
    """log2 sum 2^s along an axis, and the entropies of 2^s by the sum."""
    shift = finite(tl.max(s, AXIS))
    below = s - tl.expand_dims(shift, AXIS)
    e = tl.exp2(below)
    total = tl.sum(e, AXIS)
    return log2(total) + shift, _entropy(total, tl.sum(e * tl.maximum(below, _LEAST), AXIS))


@triton.jit
def merged_entropies(before, entropy, values, entropies, shift):
    """(BLOCK,) of a log-sum-exp and an entropy so far, and of parts (LINES, BLOCK); `shift` is a reference of all."""
    e = tl.exp2(before - shift)
    parts = tl.exp2(values - shift[None, :])
    weighted = tl.sum(parts * (tl.maximum(values - shift[None, :], _LEAST) - entropies), 0)
    return _entropy(e + tl.sum(parts, 0), e * (tl.maximum(before - shift, _LEAST) - entropy) + weighted)
