"""The functions of simmim_kernels/pointwise.py and their derivatives, as device code for float32."""

import triton
import triton.language as tl

# Triton has no log1p and no expm1 of its own, and its interpreter knows no libdevice.


@triton.jit
def _log1p(u):
    """log(1 + u) for u in (-1, 1]: 1 + u rounds, and the quotient u / ((1 + u) - 1) takes the rounding back (Kahan)."""
    w = 1.0 + u
    near = w == 1.0
    return tl.where(near, u, tl.log(w) * (u / tl.where(near, 1.0, w - 1.0)))


@triton.jit
def _softplus(s):
    """log(1 + e^s) as max(s, 0) + log(1 + u), u = e^-|s|: u times a polynomial, to 2.2e-7 of the result.

    The polynomial of degree 8 goes through log(1 + u) / u in the Chebyshev nodes of [0, 1]. Kahan's quotient would take
    twice the instructions and, in a tile of 128 x 128 on four warps, more registers than there are.
    """
    u = tl.exp(-tl.abs(s))
    p = u * 0.0051261018961668015 - 0.029074065387248993
    p = p * u + 0.0775160863995552
    p = p * u - 0.13602247834205627
    p = p * u + 0.19076880812644958
    p = p * u - 0.2483539879322052
    p = p * u + 0.3331812024116516
    p = p * u - 0.4999944567680359
    p = p * u + 0.9999999403953552
    # The comparison, and not a maximum, lets NaN through.
    return tl.where(s > 0, s, 0.0) + p * u


@triton.jit
def _sigmoid(s):
    """1 / (1 + e^-s), by the exponential that _softplus takes too."""
    u = tl.exp(-tl.abs(s))
    return tl.where(s < 0, u, 1.0) / (1.0 + u)


@triton.jit
def _expm1(s):
    """e^s - 1 for s of any size, by Kahan's quotient."""
    u = tl.exp(s)
    near = u == 1.0
    far = (s < -17.0) | (s > 17.0)
    plain = near | far
    quotient = (u - 1.0) * s / tl.where(plain, 1.0, tl.log(tl.where(plain, 2.0, u)))
    return tl.where(near, s, tl.where(far, u - 1.0, quotient))


@triton.jit
def pointwise_value(s, FN: tl.constexpr):
    if FN == "identity":
        return s
    elif FN == "square":
        return s * s
    elif FN == "softplus":
        return _softplus(s)
    else:
        tl.static_assert(FN == "log1mexp")
        near_zero = s > -0.6931471805599453
        return tl.where(near_zero, tl.log(-_expm1(s)), _log1p(-tl.exp(tl.where(near_zero, -1.0, s))))


@triton.jit
def pointwise_derivative(s, FN: tl.constexpr):
    if FN == "identity":
        return tl.full(s.shape, 1.0, tl.float32)
    elif FN == "square":
        return 2.0 * s
    elif FN == "softplus":
        return _sigmoid(s)
    else:
        tl.static_assert(FN == "log1mexp")
        return -1.0 / _expm1(-s)
