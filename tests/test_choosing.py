"""docs/choosing.md: what it says that a bound or a loss costs is what a backend is asked for."""

import re
import types
from pathlib import Path

import pytest
import torch

import simmim_kernels as sk
from simmim_kernels.backends import BACKENDS, tiled

PAGE = (Path(__file__).parent.parent / "docs" / "choosing.md").read_text()
N = 30
X, Y = (torch.randn(N, 4, requires_grad=True) for _ in range(2))
LABELS = torch.arange(N) % 7
CALLS = {
    "bounds.infonce": lambda s: sk.bounds.infonce(s),
    "bounds.infonce(symmetric=True)": lambda s: sk.bounds.infonce(s, symmetric=True),
    "bounds.dv": lambda s: sk.bounds.dv(s),
    'MutualInformation(bound="mine")': lambda s: sk.bounds.mine(s, torch.tensor(0.0)),
    "bounds.nwj": lambda s: sk.bounds.nwj(s),
    "bounds.tuba": lambda s: sk.bounds.tuba(s, 0.0),
    "bounds.interpolated": lambda s: sk.bounds.interpolated(s, 0.5, 0.0),
    "bounds.js": lambda s: sk.bounds.js(s),
    "bounds.smile": lambda s: sk.bounds.smile(s),
    "bounds.flo": lambda s: sk.bounds.flo(s, 0.0),
    "bounds.leave_one_out": lambda s: sk.bounds.leave_one_out(s),
    "bounds.club": lambda s: sk.bounds.club(s),
    "bounds.barber_agakov": lambda s: sk.bounds.barber_agakov(s),
    "bounds.js_divergence": lambda s: sk.bounds.js_divergence(s),
    "clip_loss": lambda s: sk.clip_loss(X, Y, 1.0),
    "siglip_loss": lambda s: sk.siglip_loss(X, Y, 1.0, -1.0),
    "info_nce_loss": lambda s: sk.info_nce_loss(X, Y),
    "nt_xent_loss": lambda s: sk.nt_xent_loss(X, Y),
    "dcl_loss": lambda s: sk.dcl_loss(X, Y),
    "supcon_loss": lambda s: sk.supcon_loss(X, LABELS),
    "linear_cross_entropy": lambda s: sk.linear_cross_entropy(X, Y, LABELS),
}


def stated() -> dict[str, int]:
    """By name, the last column of the page's tables, in products of N x N pairs."""
    found = {}
    for row in re.findall(r"^\| (.+) \|$", PAGE, re.M):
        *cells, cost = row.split(" | ")
        costs = [(int(times or 1) * int(g) * (4 if "2N" in of else 1)) for times, g, of in COST.findall(cost)]
        names = [name for cell in cells[:2] for name in re.findall(r"`([^`]+)`", cell) if name in CALLS]
        if costs:
            found |= dict(zip(names, costs * (len(names) // len(costs)), strict=True))
    return found


COST = re.compile(r"(?:(\d) × )?(\d+) g(?! of pairs within)( of 2N × 2N)?")


def test_every_row_is_counted():
    assert stated().keys() == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_cost(name, monkeypatch):
    asked = []

    def counted(products, function):
        def call(problem, *arguments):
            share = 0.5 if problem.symmetric else 1  # tests/test_symmetric.py counts what that half is
            # Pairs within classes, a share of all, have a cost of their own on the page.
            if not problem.grouped:
                asked.append(share * products * problem.shape[0] * problem.shape[1] / N**2)
            return function(problem, *arguments)

        return call

    backend = types.SimpleNamespace(
        unavailable=lambda: None,
        not_by_default=lambda device: None,
        supports=lambda problem: None,
        forward=counted(1, tiled.forward),
        backward=counted(3, tiled.backward),
        value_and_gradients=counted(3, tiled.value_and_gradients),
    )
    monkeypatch.setitem(BACKENDS, "counting", backend)
    with sk.use_backend("counting"):
        CALLS[name](sk.DotCritic(0.3)(X, Y)).backward()
    assert sum(asked) == stated()[name]
