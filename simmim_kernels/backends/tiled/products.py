"""Matrix products of tiles, by the fastest library that PyTorch carries for them, and what is small enough to skip."""

from collections.abc import Callable

import torch
from torch import Tensor

# Below this many multiplications the price of a call to oneDNN outweighs its speed.
_ONEDNN_FROM = 2**21


def times_transposed(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T for a (K, L) and b (J, L), without autograd. Fastest where a is contiguous; b may be strided.

    torch.mm takes MKL for float32 on x86, whose speed on an AMD EPYC is that of AVX2. oneDNN, which PyTorch's own
    compiler calls by this operator, uses AVX-512 there: about twice as fast (benchmarks/test_products.py).
    """
    if a.dtype == torch.float32 and a.device.type == "cpu" and a.numel() * b.shape[0] >= _ONEDNN_FROM:
        linear = _onednn_linear()
        if linear is not None:
            return linear(a, b, None, "none", [], "")
    return torch.mm(a, b.T)


def _onednn_linear() -> Callable[..., Tensor] | None:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def flush(e: Tensor) -> Tensor:
    """Zeroes what is too small to matter, before products of it become denormal and slow; NaN stays."""
    return torch.threshold_(e, torch.finfo(e.dtype).tiny ** 0.5, 0.0)
