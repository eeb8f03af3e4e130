"""The backward of narrow operands: G Y and G^T X by kernels that keep the weights G to themselves, one for each side.

4 products where strips.py makes 3, of which a narrow operand's cost less than writing and reading the weights.
"""

import torch
from torch import Tensor

from .calls import Call, Side

# SIMMIM_CUDA_NARROW of csrc/cuda/simmim_cuda.h.
WIDTH = 128


def takes(call: Call) -> bool:
    p = call.problem
    plain = p.fn == "logsumexp" and not p.clamped and p.row_ids is None
    of_positives = p.joint == "left_out" and p.positives is not None
    half = call.x.dtype != torch.float32
    return plain and not of_positives and half and call.x.shape[1] <= WIDTH and call.has_hoppers_kernels


def gradients(
    call: Call, of_rows: Side | None, of_columns: Side | None, unit: Tensor | None, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`. `unit` is what the upstream gradients of the sides were multiplied by."""
    p, d = call.problem, call.problem.x.shape[1]
    needs_x, needs_y, needs_row_bias, needs_col_bias, needs_scale = needs
    needs_row_bias, needs_col_bias = (
        needs_row_bias and p.row_bias is not None,
        needs_col_bias and p.col_bias is not None,
    )
    scale = p.parameters[0].to(torch.float32)
    factor = scale if unit is None else scale / unit
    dx = dy = drow = dcol = dscale = None

    def whole(gradient: Tensor | None) -> Tensor | None:
        return gradient if gradient is None or unit is None else gradient.div_(unit)

    if needs_x or needs_row_bias or needs_scale:
        products, drow = call.products(of_rows, of_columns, False, needs_row_bias)
        if needs_scale:
            dscale = torch.sum(call.x * products)
        if needs_x:
            dx = torch.mul(products, factor, out=torch.empty(call.x.shape, dtype=p.x.dtype, device=call.device))[:, :d]
    if needs_y or needs_col_bias:
        products, dcol = call.products(of_rows, of_columns, True, needs_col_bias)
        if needs_y:
            dy = torch.mul(products, factor, out=torch.empty(call.y.shape, dtype=p.x.dtype, device=call.device))[:, :d]
    return [dx, dy, whole(drow), whole(dcol), whole(dscale)]
