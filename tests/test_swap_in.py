"""docs/swap-in.md: the lines after give the loss and the gradients of the lines before, where the library is there."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torchvision_stand_in import stand_in_for_torchvision

PAGE = Path(__file__).parent.parent / "docs" / "swap-in.md"
BLOCKS = re.findall(r"```(python|diff)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
SWAPS = [block for kind, block in BLOCKS if kind == "diff"]
LEAVES = ("first", "second", "third", "logit_scale", "logit_bias")


def side(block: str, sign: str) -> str:
    """The code of a diff before ("-") or after ("+") it."""
    return "".join(line[1:] + "\n" for line in block.splitlines() if line[0] in f" {sign}")


def needs(code: str) -> set[str]:
    names = re.findall(r"^(?:from|import) (\S+)", code, flags=re.MULTILINE)
    return {name.removeprefix("simmim_kernels.drop_in.").partition(".")[0] for name in names}


def loss_and_gradients(code: str, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    stand_in_for_torchvision()
    missing = [name for name in sorted(needs(code)) if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    setup = next(block for kind, block in BLOCKS if kind == "python")
    namespace: dict = {}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        exec(compile(setup, str(PAGE), "exec"), namespace)
        exec(compile(code, str(PAGE), "exec"), namespace)
    finally:
        torch.set_default_dtype(before)
    leaves = [*(namespace[name] for name in LEAVES), *namespace["head"].parameters()]
    return namespace["loss"].detach(), list(torch.autograd.grad(namespace["loss"], leaves, allow_unused=True))


@pytest.mark.parametrize("block", SWAPS, ids=lambda block: re.sub(r"\W+", " ", side(block, "-"))[:40].strip())
def test_the_lines_after_run(block):
    after = side(block, "+")
    loss, gradients = loss_and_gradients(after, torch.float32)
    assert loss.dim() == 0
    assert loss > 0
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("dtype", "of_value", "of_gradient"), [(torch.float32, 1e-6, 1e-5), (torch.float64, 1e-10, 1e-10)]
)
@pytest.mark.parametrize("block", SWAPS, ids=lambda block: re.sub(r"\W+", " ", side(block, "-"))[:40].strip())
def test_the_lines_after_give_what_the_lines_before_do(block, dtype, of_value, of_gradient):
    want, truths = loss_and_gradients(side(block, "-"), dtype)
    got, found = loss_and_gradients(side(block, "+"), dtype)
    assert abs(got - want) <= of_value * abs(want)
    for gradient, truth in zip(found, truths, strict=True):
        assert (gradient is None) == (truth is None)
        if truth is not None:
            assert (gradient - truth).abs().max() <= of_gradient * truth.abs().max()


def test_every_library_of_the_page_is_swapped():
    libraries = set.union(*(needs(side(block, "-")) for block in SWAPS))
    assert libraries == {"open_clip", "lightly", "pytorch_metric_learning", "sentence_transformers", "info_nce"}
