"""Losses of other libraries that know of several processes, theirs and ours, on ranks or in one process."""

import importlib
from collections.abc import Callable

import torch
from sharded_cases import relative_weights
from sharded_jobs import features
from torch import Tensor, nn
from torchvision_stand_in import stand_in_for_torchvision

THEIRS = {
    "open_clip": "open_clip.loss",
    "lightly": "lightly.loss",
    "sentence_transformers": "sentence_transformers.sentence_transformer.losses",
}


class Same(nn.Module):
    """What sentence-transformers' losses want of a model, and nothing else."""

    def forward(self, features):
        return {"sentence_embedding": features["x"]}


class Guide(nn.Module):
    def forward(self, features):
        return {"sentence_embedding": features["x"].tanh()[:, :3]}


def gist(kind: type, model: nn.Module, **settings) -> nn.Module:
    """A GISTEmbedLoss without tokenizers: its constructor asks for real models."""
    loss = kind.__new__(kind)
    nn.Module.__init__(loss)
    loss.model, loss.guide, loss.must_retokenize = model, Guide(), False
    loss.temperature, loss.margin, loss.margin_strategy = 0.05, 0.05, "absolute"
    loss.contrast_anchors = loss.contrast_positives = True
    loss.gather_across_devices = False
    loss.similarity_fct, loss.cross_entropy_loss = nn.CosineSimilarity(dim=-1), nn.CrossEntropyLoss()
    for name, value in settings.items():
        setattr(loss, name, value)
    return loss


Calls = dict[str, Callable[[], Tensor | tuple[Tensor, ...]]]


def of_open_clip(module, x, y, scale, bias, rank: int, world: int) -> Calls:
    of_rank = {"rank": rank, "world_size": world}
    logits = torch.stack([x, y, x * y], 1)
    captions = torch.tensor([1, 2, 3]).expand(len(x), 3)
    teacher = (y, x + 0.5, scale / 2)
    calls: Calls = {
        f"SigLipLoss, {how}": lambda how=how: module.SigLipLoss(dist_impl=how, **of_rank)(x, y, scale, bias)
        for how in ("bidir", "shift", "reduce", "gather")
    }
    for flags in ((local, grad) for local in (False, True) for grad in (False, True)):
        calls |= {
            f"ClipLoss{flags}": lambda flags=flags: module.ClipLoss(*flags, **of_rank)(x, y, scale, bias),
            f"CoCaLoss{flags}": lambda flags=flags: module.CoCaLoss(2.0, 0.5, 0, *flags, **of_rank)(
                x, y, logits, captions, scale
            ),
            f"DistillClipLoss{flags}": lambda flags=flags: module.DistillClipLoss(*flags, **of_rank)(
                x, y, scale, *teacher
            ),
        }
    return calls


def of_lightly(module, x, y, scale, bias, rank: int, world: int) -> Calls:
    options = {"temperature": 0.3, "gather_distributed": world > 1}
    return {
        "NTXentLoss": lambda: module.NTXentLoss(**options)(x, y),
        "DCLLoss": lambda: module.DCLLoss(**options)(x, y),
        "DCLLoss, weight_fn": lambda: module.DCLLoss(weight_fn=relative_weights, **options)(x, y),
        "DCLWLoss": lambda: module.DCLWLoss(**options)(x, y),
    }


def of_sentence_transformers(module, x, y, scale, bias, rank: int, world: int) -> Calls:
    gather, model = {"gather_across_devices": world > 1}, nn.Sequential(Same())
    columns = [x, y, x + y.square()]
    settings: list[dict] = [
        {},
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
        {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
        {"hardness_mode": "all_negatives", "hardness_strength": 2.0},
    ]
    calls: Calls = {}
    for options in settings:
        calls[f"ranking, {options}"] = lambda options=options: module.MultipleNegativesRankingLoss(
            model, **options, **gather
        ).compute_loss_from_embeddings(columns, None)
        calls[f"cached, {options}"] = lambda options=options: module.CachedMultipleNegativesRankingLoss(
            model, mini_batch_size=2, **options, **gather
        ).calculate_loss([[t[:2], t[2:]] for t in columns])
    for anchors in (False, True):
        calls[f"GISTEmbedLoss, anchors {anchors}"] = lambda anchors=anchors: gist(
            module.GISTEmbedLoss, model, contrast_anchors=anchors, **gather
        )([{"x": t} for t in columns], None)
    return calls


CALLS = {"open_clip": of_open_clip, "lightly": of_lightly, "sentence_transformers": of_sentence_transformers}
Outcome = tuple[Tensor, list[Tensor | None]] | str


def outcomes(library: str, module, leaves: list[Tensor], rank: int = 0, world: int = 1) -> dict[str, Outcome]:
    """By name the value of a loss and its gradients by x, y, scale and bias, or why there is none."""
    found: dict[str, Outcome] = {}
    for name, call in CALLS[library](module, *leaves, rank, world).items():
        try:
            value = call()
        except NotImplementedError as error:
            found[name] = str(error)
            continue
        value = sum((k + 1) * part for k, part in enumerate(value)) if isinstance(value, tuple) else value
        gradients = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        found[name] = (value.detach(), list(gradients))
    return found


def leaves(features: list[Tensor]) -> list[Tensor]:
    numbers = (torch.tensor(number, dtype=torch.float64) for number in (3.0, -1.0))
    return [t.detach().requires_grad_() for t in (*features, *numbers)]


def of_rank(group, library: str, whose: str) -> dict[str, Outcome]:
    """Of a rank of all: "theirs", "ours" by default, or ours "as original"."""
    stand_in_for_torchvision()
    module = importlib.import_module(THEIRS[library] if whose == "theirs" else f"simmim_kernels.drop_in.{library}")
    from simmim_kernels.drop_in._processes import SeveralProcesses

    SeveralProcesses.original_gradients = whose == "as original"
    return outcomes(library, module, leaves(features(group.rank())), group.rank(), group.size())
