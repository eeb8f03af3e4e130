"""Every drop-in beside the class that it stands in for: time, peak memory, and error against float64.

Each case runs in a process of its own, in which ours and theirs alternate; `python -m benchmarks.report` runs them all,
and of its quick ones all sizes of a loss in one, since a process imports its library for longer than it measures.
A library that is not installed is a case left out, with the reason.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_kernels.comparison.measure import extra_bytes, timed

CLASSES = 100
SCALE, BIAS = 14.3, -10.0
QUICK, SIZES = (64, 256, 1024), (64, 128, 256, 512, 1024, 2048, 4096, 8192)
# The float64 truth is the original's, which wants up to some twenty matrices.
LARGEST_TRUTH = 1024

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _open_clip(name: str, module: Any) -> Loss:
    loss = getattr(module, name)()
    return lambda x, y, _: loss(F.normalize(x, dim=1), F.normalize(y, dim=1), SCALE, BIAS)


def _two_views(name: str, module: Any, **options: Any) -> Loss:
    loss = getattr(module, name)(**options)
    return lambda x, y, _: loss(x, y)


def _of_labels(name: str, module: Any) -> Loss:
    loss = getattr(module, name)()
    return lambda x, _, labels: loss(x, labels)


def _ranking(module: Any) -> Loss:
    loss = module.MultipleNegativesRankingLoss(torch.nn.Sequential(torch.nn.Identity()))
    return lambda x, y, labels: loss.compute_loss_from_embeddings([x, y], labels)


def _cached_ranking(module: Any) -> Loss:
    loss = module.CachedMultipleNegativesRankingLoss(torch.nn.Sequential(torch.nn.Identity()))
    return lambda x, y, labels: loss.calculate_loss([[x], [y]], labels, with_backward=True)


class _Given(torch.nn.Module):
    """A model whose sentence embeddings are what it is given, or another function of that."""

    def __init__(self, function: Callable[[Tensor], Tensor] = lambda x: x):
        super().__init__()
        self.function = function

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.function(features["given"])}


def _guided(module: Any) -> Loss:
    loss = module.GISTEmbedLoss.__new__(module.GISTEmbedLoss)  # the constructor asks for whole transformers
    torch.nn.Module.__init__(loss)
    loss.model, loss.guide = _Given(), _Given(torch.tanh)
    loss.must_retokenize = loss.gather_across_devices = False
    # Not 0.01, its default, at which the original, 1 less a softmax of 1 - 1e-25, has no gradient by these positives.
    loss.temperature, loss.margin, loss.margin_strategy = 0.05, 0.0, "absolute"
    loss.contrast_anchors = loss.contrast_positives = True
    loss.similarity_fct, loss.cross_entropy_loss = torch.nn.CosineSimilarity(dim=-1), torch.nn.CrossEntropyLoss()
    return lambda x, y, labels: loss([{"given": x}, {"given": y}], labels)


@dataclass(frozen=True)
class Peer:
    """A loss of a library, and how a module, theirs or ours, makes it."""

    library: str
    module: str
    make: Callable[[Any], Loss]
    largest: int = 8192
    """Of theirs; ours runs beyond it alone."""
    own_backward: bool = False


PEERS = {
    "ClipLoss": Peer("open_clip", "open_clip.loss", partial(_open_clip, "ClipLoss")),
    "SigLipLoss": Peer("open_clip", "open_clip.loss", partial(_open_clip, "SigLipLoss")),
    "MultipleNegativesRankingLoss": Peer(
        "sentence_transformers", "sentence_transformers.sentence_transformer.losses", _ranking
    ),
    "CachedMultipleNegativesRankingLoss": Peer(
        "sentence_transformers",
        "sentence_transformers.sentence_transformer.losses",
        _cached_ranking,
        largest=4096,
        own_backward=True,
    ),
    # Three arrays of N x N x d numbers, and as many of its guide's.
    "GISTEmbedLoss": Peer(
        "sentence_transformers", "sentence_transformers.sentence_transformer.losses", _guided, largest=128
    ),
    "NTXentLoss (lightly)": Peer("lightly", "lightly.loss", partial(_two_views, "NTXentLoss")),
    "DCLLoss": Peer("lightly", "lightly.loss", partial(_two_views, "DCLLoss")),
    "SupConLoss": Peer("pytorch_metric_learning", "pytorch_metric_learning.losses", partial(_of_labels, "SupConLoss")),
    # A number for each positive and each negative pair: at N = 512 and 100 classes 2.7e9 of them.
    "NTXentLoss (PML)": Peer(
        "pytorch_metric_learning", "pytorch_metric_learning.losses", partial(_of_labels, "NTXentLoss"), largest=256
    ),
    "InfoNCE": Peer("info_nce", "info_nce", partial(_two_views, "InfoNCE")),
}


def inputs(n: int, d: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features of two views, a row of the second a noisy copy of its row of the first, and labels."""
    g = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(n, d, generator=g) for _ in range(2))
    labels = torch.randint(0, CLASSES, (n,), generator=g)
    x, y = (t.to(device, dtype).requires_grad_() for t in (x, x + noise))
    return x, y, labels.to(device)


def _gradients(loss: Loss, own_backward: bool, x: Tensor, y: Tensor, labels: Tensor) -> list[Tensor]:
    if not own_backward:
        value = loss(x, y, labels)
        return [g for g in torch.autograd.grad(value, (x, y), allow_unused=True) if g is not None]
    x, y = (t.detach().requires_grad_() for t in (x, y))
    loss(x, y, labels)
    assert x.grad is not None
    assert y.grad is not None
    return [x.grad, y.grad]


def measure(name: str, n: int, d: int, dtype: str, device: str) -> dict:
    """One case, in this process: seconds, bytes beyond inputs and gradients, and the gradients' relative error."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from torchvision_stand_in import stand_in_for_torchvision

    stand_in_for_torchvision()
    peer = PEERS[name]
    run = {"case": name, "library": peer.library, "n": n, "d": d, "dtype": dtype, "device": device}
    try:
        theirs = import_module(peer.module)
    except ModuleNotFoundError as error:
        return run | {"left_out": f"{error.name} is not installed"}
    losses = {"ours": peer.make(import_module(f"simmim_kernels.drop_in.{peer.library}"))}
    if n <= peer.largest:
        losses["theirs"] = peer.make(theirs)
    data = inputs(n, d, getattr(torch, dtype), device)
    steps = {key: partial(_gradients, loss, peer.own_backward, *data) for key, loss in losses.items()}
    for key, step in steps.items():  # which warms it up
        made: list[Tensor] = []
        peak = extra_bytes(lambda step=step, made=made: made.extend(step()), device)
        run[f"{key}_megabytes"] = (peak - sum(g.numel() * g.element_size() for g in made)) / 1e6
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(_rounds(name, n)):
        for key, step in steps.items():
            seconds[key].append(timed(step))
    for key, all_of_it in seconds.items():
        run[f"{key}_seconds"] = median(all_of_it)
    if "theirs" in steps:
        run["ratio"] = median(a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True))
        if n <= LARGEST_TRUTH:
            wide = [data[0].detach().double().requires_grad_(), data[1].detach().double().requires_grad_(), data[2]]
            truth = torch.cat(_gradients(peer.make(theirs), peer.own_backward, *wide))
            for key, step in steps.items():
                error = torch.cat(step()).double() - truth
                run[f"{key}_error"] = float(error.norm() / truth.norm())
    return run


def _rounds(name: str, n: int) -> int:
    if n > 2048:
        return 1 if name.startswith("Cached") else 2
    if name.startswith("GIST"):
        return 5
    return 21 if n <= 256 else 11 if n <= 1024 else 3


def cases(names: list[str], sizes: tuple[int, ...], dtypes: list[str]) -> Iterator[tuple[str, int, str]]:
    for name in names:
        for dtype in dtypes:
            for n in sizes:
                # Hours of theirs, and nothing to learn from.
                if not (name.startswith("Cached") and n > PEERS[name].largest):
                    yield name, n, dtype


def run_in_a_fresh_process(name: str, sizes: list[int], d: int, dtype: str, device: str) -> list[dict]:
    asked = [name, ",".join(map(str, sizes)), str(d), dtype, device]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.suite", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    rest = {"case": name, "d": d, "dtype": dtype, "device": device, "left_out": last}
    return found + [rest | {"n": n} for n in sizes[len(found) :]]


def main() -> None:
    parser = argparse.ArgumentParser(description="A loss at one or more sizes, each as a line of JSON.")
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("sizes", help="separated by commas")
    parser.add_argument("d", type=int)
    parser.add_argument("dtype")
    parser.add_argument("device")
    given = vars(parser.parse_args())
    for n in map(int, given.pop("sizes").split(",")):
        print(json.dumps(measure(n=n, **given)), flush=True)


if __name__ == "__main__":
    main()
