"""The products of tiles, by oneDNN and by PyTorch's own."""

import pytest
import torch
from truth import assert_close

import simmim_kernels as sk
from simmim_kernels.backends.tiled import products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("from_size", [0, 10**9], ids=["onednn", "mm"])
@pytest.mark.parametrize(("k", "j", "l"), [(1, 1, 1), (3, 5, 1), (17, 64, 33), (129, 65, 7), (64, 300, 512)])
def test_product(k, j, l, from_size, dtype, monkeypatch):  # noqa: E741
    monkeypatch.setattr(products, "_ONEDNN_FROM", from_size)
    a, b = torch.randn(k, l, dtype=dtype), torch.randn(j, l, dtype=dtype)
    want = a.double() @ b.double().T
    assert_close(products.times_transposed(a, b), want)
    assert_close(products.times_transposed(a.T.contiguous().T, b.T.contiguous().T), want)
    assert_close(products.times_transposed(a.repeat_interleave(2, 1)[:, ::2], b.repeat_interleave(3, 0)[::3]), want)


def test_both_make_the_same_loss(monkeypatch):
    x, y = (torch.randn(200, 64, requires_grad=True) for _ in range(2))
    found = []
    for from_size in (0, 10**9):
        monkeypatch.setattr(products, "_ONEDNN_FROM", from_size)
        found.append(torch.autograd.grad(sk.clip_loss(x, y, 0.1), (x, y)))
    for a, b in zip(*found, strict=True):
        assert_close(a, b.double())


def test_onednn_is_found_where_pytorch_has_it_and_left_where_the_user_says():
    if torch.backends.mkldnn.is_available():
        assert products._onednn_linear() is not None
    with torch.backends.mkldnn.flags(enabled=False):
        assert products._onednn_linear() is None
