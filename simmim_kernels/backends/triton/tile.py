"""What every kernel does with one tile of pairs: products, scores, exclusions, and weights in the backward.

A tile has the pairs (i0 .. i0 + BI, j0 .. j0 + BJ) of an own side i and another side j. The forward owns rows; a
backward may own either side, so nothing here speaks of rows and columns.
"""

import triton
import triton.language as tl
from triton import knobs
from triton.language import target_info

from .pointwise import pointwise_derivative, pointwise_value

LOG2E = tl.constexpr(1.4426950408889634)
# Columns at a time of a guide's operands.
_GUIDE_WIDTH = tl.constexpr(16)

# The interpreter multiplies bfloat16 as the integers that hold its bits, so that there all products are in float32.
_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def load_operand(side, start, offset_d, d, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr):
    """(BLOCK, BLOCK_D) of a side's operand. Past its end the last row again: the pairs are filled out later."""
    index = tl.minimum(start + tl.arange(0, BLOCK), side.size - 1).to(tl.int64)
    k = offset_d + tl.arange(0, BLOCK_D)
    # Strides of 2^31 and more make their product 64-bit; d alone may have such a stride in a transposed view.
    pointers = side.operand + (index * side.stride)[:, None] + (k.to(tl.int64) * side.stride_d)[None, :]
    if EVEN_D:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(k < d)[None, :], other=0.0)


@triton.jit
def partners(joint, i):
    """Where on the other side the joint pairs of lines i are."""
    if joint.index is None:
        return i
    else:
        return tl.load(joint.index + i, mask=i < joint.size, other=0)


@triton.jit
def load_partners(joint, i0, k0, d, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """(ROWS, WIDTH) of the operands beside which lines stand in their joint pairs, in float32; 0 for none."""
    i = i0 + tl.arange(0, ROWS)
    k = k0 + tl.arange(0, WIDTH)
    line = partners(joint, i).to(tl.int64)
    pointers = joint.operand + (line * joint.stride)[:, None] + (k.to(tl.int64) * joint.stride_d)[None, :]
    return tl.load(pointers, mask=(i < joint.size)[:, None] & (k < d)[None, :], other=0.0).to(tl.float32)


@triton.jit
def offsets_within(ROWS: tl.constexpr, stride, columns):
    """Of the elements of a tile from its first: 32 bits, and so half the registers, where the start took 64."""
    return (tl.arange(0, ROWS) * stride)[:, None] + columns[None, :]


@triton.jit
def load_vector(pointer, start, size, BLOCK: tl.constexpr, other):
    """(BLOCK,) of a vector in float32, `other` past its end."""
    index = start + tl.arange(0, BLOCK)
    return tl.load(pointer + index, mask=index < size, other=other).to(tl.float32)


@triton.jit
def multiply(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a @ b"""
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), accumulator, input_precision="ieee")
    else:
        return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def products_of_tile(
    own, other, i0, j0, d, BI: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr, EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(BI, BJ) inner products, BD columns of the operands at a time."""
    total = tl.zeros((BI, BJ), tl.float32)
    for k in range(0, d, BD):
        a = load_operand(own, i0, k, d, BI, BD, EVEN_D)
        b = load_operand(other, j0, k, d, BJ, BD, EVEN_D)
        total = multiply(a, b.T, total, PRECISION)
    return total


@triton.jit  # noqa: RET503 Triton 3.6 compiles no `return None` beside a tensor
def above_limit(own, other, i0, j0, BI: tl.constexpr, BJ: tl.constexpr):
    """(BI, BJ) True where a guide leaves a pair out; None where there is no guide.

    Of float32 products whatever those of the scores are: by a rounding pairs would count, or not. Wanted before the
    scores' product, so that no two accumulators live at a time.
    """
    mine, others = own.guide, other.guide
    if mine.operand is not None:
        products = products_of_tile(mine, others, i0, j0, mine.d, BI, BJ, _GUIDE_WIDTH, False, "ieee")
        if mine.limit is not None:
            limit = load_vector(mine.limit, i0, mine.size, BI, 0.0)[:, None]
        else:
            limit = load_vector(others.limit, j0, others.size, BJ, 0.0)[None, :]
        return products > limit


@triton.jit
def unclamped_scores(products, own, other, i0, j0, critic, UNIT: tl.constexpr):
    """Scores before the clamp, times UNIT where there is none: a clamp acts in nats."""
    BI: tl.constexpr = products.shape[0]
    BJ: tl.constexpr = products.shape[1]
    unit: tl.constexpr = UNIT if critic.lo is None else 1.0
    s = products * (tl.load(critic.scale).to(tl.float32) * unit)
    if own.bias is not None:
        s += (load_vector(own.bias, i0, own.size, BI, 0.0) * unit)[:, None]
    if other.bias is not None:
        s += (load_vector(other.bias, j0, other.size, BJ, 0.0) * unit)[None, :]
    return s


@triton.jit
def clamped_scores(s, critic, UNIT: tl.constexpr):
    """Scores times UNIT, from unclamped_scores."""
    if critic.lo is None:
        return s
    else:
        return tl.where(s < critic.lo, critic.lo, tl.where(s > critic.hi, critic.hi, s)) * UNIT


@triton.jit
def _joint_pairs(own, other, i, j):
    if own.joint is not None:
        return tl.load(own.joint + i, mask=i < own.size, other=-1)[:, None] == j[None, :]
    elif other.joint is not None:
        return i[:, None] == tl.load(other.joint + j, mask=j < other.size, other=-1)[None, :]
    else:
        return i[:, None] == j[None, :]


@triton.jit
def _left_out_by_ids(own, other, i, j, IDS: tl.constexpr):
    """True where any of the IDS pairs of ids agree, or the groups differ."""
    out = tl.zeros((i.shape[0], j.shape[0]), tl.int1)
    if IDS > 0:
        own_ids = own.ids + i
        other_ids = other.ids + j
        for _ in tl.static_range(IDS):
            mine = tl.load(own_ids, mask=i < own.size, other=0)
            others = tl.load(other_ids, mask=j < other.size, other=0)
            out = out | (mine[:, None] == others[None, :])
            own_ids += own.size
            other_ids += other.size
    if own.group is not None:
        mine = tl.load(own.group + i, mask=i < own.size, other=0)
        others = tl.load(other.group + j, mask=j < other.size, other=0)
        out = out | (mine[:, None] != others[None, :])
    return out


@triton.jit
def fill_left_out(values, fill, own, other, i0, j0, by_guide, IDS: tl.constexpr, JOINT: tl.constexpr):
    """`values` with `fill` for the excluded pairs, by `above_limit` too, and for those outside the matrix."""
    BI: tl.constexpr = values.shape[0]
    BJ: tl.constexpr = values.shape[1]
    i = i0 + tl.arange(0, BI)
    j = j0 + tl.arange(0, BJ)
    if (IDS > 0) | (own.group is not None) | (by_guide is not None):
        excluded = _left_out_by_ids(own, other, i, j, IDS)
        if by_guide is not None:
            excluded = excluded | by_guide
        if JOINT == "left_out":
            excluded = excluded | _joint_pairs(own, other, i, j)
        elif JOINT == "kept":
            excluded = excluded & (_joint_pairs(own, other, i, j) == 0)
        values = tl.where(excluded, fill, values)
    elif JOINT == "left_out":
        if (own.joint is None) & (other.joint is None):
            if (i0 < j0 + BJ) & (j0 < i0 + BI):
                values = tl.where(i[:, None] == j[None, :], fill, values)
        else:
            values = tl.where(_joint_pairs(own, other, i, j), fill, values)
    if (i0 + BI > own.size) | (j0 + BJ > other.size):
        values = tl.where((i < own.size)[:, None] & (j < other.size)[None, :], values, fill)
    return values


@triton.jit
def log2(x):
    """log2 of a float32, by the unit that makes the exponentials: within 2^-22 of the larger of 1 and the result."""
    if _INTERPRETED:
        return tl.log2(x)
    elif target_info.is_cuda():
        return tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)


@triton.jit
def _signed(values, own, other, i0, j0, JOINT: tl.constexpr):
    """`values` with the sign of the joint pairs' changed where these are "negated"."""
    if JOINT == "negated":
        i = i0 + tl.arange(0, values.shape[0])
        j = j0 + tl.arange(0, values.shape[1])
        if (own.joint is None) & (other.joint is None):
            if (i0 < j0 + values.shape[1]) & (j0 < i0 + values.shape[0]):
                values = tl.where(i[:, None] == j[None, :], -values, values)
        else:
            values = tl.where(_joint_pairs(own, other, i, j), -values, values)
    return values


@triton.jit
def values_of_tile(s, own, other, i0, j0, by_guide, FN: tl.constexpr, IDS: tl.constexpr, JOINT: tl.constexpr):
    """A pointwise function of a tile's scores, 0 where pairs are left out."""
    values = pointwise_value(_signed(s, own, other, i0, j0, JOINT), FN)
    return fill_left_out(values, 0.0, own, other, i0, j0, by_guide, IDS, JOINT)


@triton.jit
def finite(reference):
    """A reference for exponentials: 0 stands for an infinite maximum, since inf - inf would be NaN."""
    return tl.where(tl.abs(reference) == float("inf"), 0.0, reference)


@triton.jit
def _references(side, start, BLOCK: tl.constexpr):
    return load_vector(side.reference, start, side.size, BLOCK, float("inf"))


@triton.jit
def _factors(side, start, BLOCK: tl.constexpr):
    return load_vector(side.factor, start, side.size, BLOCK, 0.0)


@triton.jit
def is_for(critic, REFERENCES: tl.constexpr):
    """Whether a program compiled for REFERENCES has to do with this problem: it does nothing otherwise.

    "one" for a reference that serves rows and columns alike, "two" where none does, "any" where there is but one
    statistic, or none. A kernel that could do both would take the registers of both.
    """
    if REFERENCES == "any":
        return True
    else:
        return (tl.load(critic.shared + 1) != 0) == (REFERENCES == "one")


@triton.jit
def _exponential_weights(s, own, other, i0, j0, critic, REFERENCES: tl.constexpr):
    """alpha_i e^(s - r_i) + beta_j e^(s - c_j), of scores in base 2."""
    BI: tl.constexpr = s.shape[0]
    BJ: tl.constexpr = s.shape[1]
    if other.reference is None:
        return tl.exp2(s - _references(own, i0, BI)[:, None]) * _factors(own, i0, BI)[:, None]
    elif own.reference is None:
        return tl.exp2(s - _references(other, j0, BJ)[None, :]) * _factors(other, j0, BJ)[None, :]
    else:
        a = _factors(own, i0, BI)[:, None]
        b = _factors(other, j0, BJ)[None, :]
        if REFERENCES == "one":
            # One exponential a pair: 2^(s - k) (alpha_i 2^(k - r_i) + beta_j 2^(k - c_j)).
            return tl.exp2(s - tl.load(critic.shared)) * (a + b)
        else:
            g = tl.exp2(s - _references(own, i0, BI)[:, None]) * a
            return g + tl.exp2(s - _references(other, j0, BJ)[None, :]) * b


@triton.jit
def _pointwise_weights(s, own, other, i0, j0, FN: tl.constexpr):
    """(alpha_i + beta_j) psi'(s); without any upstream psi'(s) alone."""
    BI: tl.constexpr = s.shape[0]
    BJ: tl.constexpr = s.shape[1]
    g = pointwise_derivative(s, FN)
    if own.factor is not None:
        upstream = _factors(own, i0, BI)[:, None]
        if other.factor is not None:
            upstream = upstream + _factors(other, j0, BJ)[None, :]
        g = g * upstream
    elif other.factor is not None:
        g = g * _factors(other, j0, BJ)[None, :]
    return g


@triton.jit
def weights_of_tile(
    unclamped, s, own, other, i0, j0, critic, by_guide, FN: tl.constexpr, IDS: tl.constexpr, JOINT: tl.constexpr,
    REFERENCES: tl.constexpr,
):  # fmt: skip
    """dL/ds of a tile, from its scores before and after the clamp."""
    if FN == "logsumexp":
        g = _exponential_weights(s, own, other, i0, j0, critic, REFERENCES)
    else:
        g = _pointwise_weights(_signed(s, own, other, i0, j0, JOINT), own, other, i0, j0, FN)
        g = _signed(g, own, other, i0, j0, JOINT)
    if critic.lo is not None:
        g = tl.where((unclamped >= critic.lo) & (unclamped <= critic.hi), g, 0.0)
    return fill_left_out(g, 0.0, own, other, i0, j0, by_guide, IDS, JOINT)
