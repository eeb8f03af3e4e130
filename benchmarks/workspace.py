"""Peak memory of the Triton backend beyond inputs and gradients, counted from its allocations, without a GPU.

python -m benchmarks.workspace 1048576 512

One CLIP problem in bfloat16 on the meta device: every tensor is allocated as on a GPU and nothing is computed.
"""

import argparse
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Imported first: it has Triton compile for GPUs rather than interpret.
from .compile import backend, launching_nothing, meta_problem


class Allocations(TorchDispatchMode):
    """Bytes of all storages that tensors made within this mode keep alive, now and at most."""

    def __init__(self, *given: torch.Tensor):
        super().__init__()
        self.held = self.peak = 0
        self._given = {t.untyped_storage()._cdata for t in given}
        self._owners: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._own(tensor)
        return made

    def _own(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._given:
            return
        if key not in self._owners:
            self.held += size
            self.peak = max(self.peak, self.held)
        self._owners[key] = self._owners.get(key, 0) + 1
        weakref.finalize(tensor, self._disown, key, size)

    def _disown(self, key: int, size: int) -> None:
        self._owners[key] -= 1
        if not self._owners[key]:
            del self._owners[key]
            self.held -= size


def extra_megabytes(n: int, d: int, deterministic: bool = False) -> float:
    """Of the row and column log-sum-exps of N x N scores, forward and backward, beyond inputs and gradients."""
    problem = meta_problem(d, torch.bfloat16, n=n, dims="both")
    needs = [tensor is not None for tensor in problem.differentiable]
    torch.use_deterministic_algorithms(deterministic)
    with launching_nothing("cuda:90"), Allocations(problem.x, problem.y) as allocations:
        found = backend.forward(problem)
        upstream = [torch.empty_like(statistic) for statistic in found]
        made = backend.backward(problem, *found, *upstream, needs)
    torch.use_deterministic_algorithms(False)
    return (allocations.peak - sum(g.nbytes for g in made if g is not None)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n", type=int, nargs="+", help="rows and columns")
    parser.add_argument("d", type=int, help="width of the features")
    parser.add_argument("--deterministic", action="store_true", help="as in PyTorch's deterministic mode")
    arguments = parser.parse_args()
    for n in arguments.n:
        print(f"{extra_megabytes(n, arguments.d, arguments.deterministic):.1f} MB")


if __name__ == "__main__":
    main()
