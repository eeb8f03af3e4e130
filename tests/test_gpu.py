"""The tiled backend on a CUDA device, against dense float64 on the CPU."""

import pytest
import torch
from truth import assert_close, error

import simmim_kernels as sk

pytestmark = pytest.mark.gpu

LOSSES = {
    "clip": lambda x, y: sk.clip_loss(x, y, 0.3),
    "siglip": lambda x, y: sk.siglip_loss(x, y, 0.3, -1.0),
    "nt_xent": sk.nt_xent_loss,
    "dcl": sk.dcl_loss,
    "smile": lambda x, y: -sk.bounds.smile(sk.GaussianCritic(3.0)(x, y)),
    "false negatives": lambda x, y: (
        -sk.bounds.infonce(
            sk.DotCritic(0.3)(x, y).exclude(*[torch.arange(len(x), device=x.device) % 50] * 2, keep_joint=True)
        )
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(LOSSES))
def test_loss(name, dtype, monkeypatch):
    monkeypatch.setattr("simmim_kernels.backends.tiles._DEVICE_TILE", 256)
    x, y = (torch.randn(700, 33).to(dtype) for _ in range(2))
    leaves = [t.cuda().requires_grad_() for t in (x, y)]
    wide = [t.double().requires_grad_() for t in (x, y)]
    got = LOSSES[name](*leaves)
    with sk.use_backend("reference"):
        want = LOSSES[name](*wide)
    found, truth = torch.autograd.grad(got, leaves), torch.autograd.grad(want, wide)
    for a, b in zip((got.detach(), *found), (want.detach(), *truth), strict=True):
        if dtype == torch.bfloat16:
            assert error(a.cpu(), b) < 0.02
        else:
            assert_close(a.cpu(), b)


def test_memory_does_not_grow_with_the_square():
    from simmim_kernels.measure import extra_bytes, forward_backward

    small, large = (
        extra_bytes(
            lambda n=n: forward_backward(
                LOSSES["clip"], [torch.randn(n, 16, device="cuda", requires_grad=True) for _ in range(2)]
            ),
            "cuda",
        )
        for n in (16384, 32768)
    )
    assert large <= 2 * small
