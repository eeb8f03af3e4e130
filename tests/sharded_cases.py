"""What ranks are asked for, and what one process makes of the same rows: every loss, bound and critic."""

from collections.abc import Callable

import torch
from torch import Tensor

import simmim_kernels as sk
from simmim_kernels.drop_in._processes import on_whole_batch
from simmim_kernels.operator import held
from simmim_kernels.ranking import DIRECTIONS

N, M, D, CLASSES = 11, 9, 4, 6
# Rows of each rank, by the number of ranks: unequal, and with empty ones.
ROWS = {1: (11,), 2: (7, 4), 3: (4, 0, 7), 4: (3, 5, 0, 3)}
COLUMNS = {1: (9,), 2: (4, 5), 3: (0, 6, 3), 4: (2, 3, 4, 0)}


def tensors() -> dict[str, Tensor]:
    """In float64: of rows and of columns, which are a rank's own, and of neither, which every rank has."""
    g = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    return {
        "x": normal(N, D),
        "y": normal(N, D),
        "row_bias": normal(N),
        "col_bias": normal(N),
        "labels": torch.tensor([0, 3, 0, 1, 1, 0, -7, 2, 2, 9, 1]),
        "target": torch.tensor([0, 3, -100, 4, 2, 2, -100, 1, 5, 0, 5]),
        "positives": torch.tensor([3, 4, 0, 10, 2, 9, 8, 1, 7, 5, 6]),
        "columns/negatives": normal(M, D),
        "all/weight": normal(CLASSES, D),
        "all/class_bias": normal(CLASSES),
        "all/class_weight": torch.arange(1, CLASSES + 1, dtype=torch.float64) / 8,
        "all/scale": torch.tensor(1.7, dtype=torch.float64, requires_grad=True),
        "all/bias": torch.tensor(-0.6, dtype=torch.float64, requires_grad=True),
        "all/temperature": torch.tensor(0.4, dtype=torch.float64, requires_grad=True),
    }


def part(all_of_it: dict[str, Tensor], rank: int, world: int, device: str = "cpu") -> dict[str, Tensor]:
    """A rank's own."""

    def rows(counts: tuple[int, ...]) -> slice:
        return slice(sum(counts[:rank]), sum(counts[: rank + 1]))

    spans = {"all": slice(None), "columns": rows(COLUMNS[world])}
    found = {}
    for name, tensor in all_of_it.items():
        kind = name.rpartition("/")[0]
        own = tensor if kind == "all" else tensor[spans.get(kind, rows(ROWS[world]))]
        found[name] = own.detach().clone().to(device).requires_grad_(tensor.requires_grad)
    return found


def bare(t: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.rpartition("/")[2]: tensor for name, tensor in t.items()}


Value = Callable[[dict[str, Tensor], object], Tensor]


def of_bound(name: str, **parameters) -> Value:
    def value(t: dict[str, Tensor], group) -> Tensor:
        taken = {key: t[of] if isinstance(of, str) else of for key, of in parameters.items()}
        return getattr(sk.bounds, name)(sk.DotCritic(0.4)(t["x"], t["y"], group=group), **taken)

    return value


def of_critic(make: Callable[[], torch.nn.Module], positives: bool = False) -> Value:
    """With its parameters among the tensors that every rank has, where they get their gradients."""

    def value(t: dict[str, Tensor], group) -> Tensor:
        torch.manual_seed(3)
        critic = make().double().to(t["x"].device)
        for name, parameter in critic.named_parameters():
            t[f"all/{name}"] = parameter
        scores = critic(t["x"], t["y"], t["positives"] if positives else None, group=group)
        return sk.bounds.infonce(scores, symmetric=True) + sk.bounds.dv(scores)

    return value


def classifier(t: dict[str, Tensor], group) -> Tensor:
    scores = sk.PairwiseScores(t["x"], t["y"], positives=t["positives"] // 2, group=group)
    return sk.bounds.barber_agakov(scores)


def mine(t: dict[str, Tensor], group) -> Tensor:
    """Of the second batch, so that the running mean is not the batch's own."""
    information = sk.MutualInformation(sk.DotCritic(0.4), "mine", group=group).to(t["x"].device)
    information(t["x"].detach(), t["y"].detach())
    return information(2 * t["x"], t["y"]) + information.log_running_mean


def linear(t: dict[str, Tensor], group, **options) -> Tensor:
    return sk.linear_cross_entropy(t["x"], t["weight"], t["target"], t["class_bias"], **options, group=group)


def ranking(t: dict[str, Tensor], group, **options) -> Tensor:
    negatives = [t["y"] + 0.5 * t["x"].square()]
    return sk.ranking_loss(t["x"], t["y"], negatives, t["temperature"], group=group, **options)


def watched(t: dict[str, Tensor], group) -> Tensor:
    """With the entropies of this rank's rows, beside a loss and alone, summed over the ranks."""
    loss, entropies = sk.info_nce_loss(t["x"], t["y"], symmetric=True, group=group, return_entropy=True)
    scores = sk.DotCritic(0.4)(t["x"], t["y"], group=group)
    return loss + scores.over_ranks((entropies * sk.softmax_entropy(scores)).sum())


def guided_ranking(t: dict[str, Tensor], group) -> Tensor:
    negatives = t["y"] + 0.5 * t["x"].square()
    guides = [3 * t["x"][:, :2], t["y"][:, :2] - 0.2, negatives[:, :2]]
    return sk.guided_ranking_loss(t["x"], t["y"], negatives, guides, t["temperature"], margin=-0.1, group=group)


def relative_weights(x: Tensor, y: Tensor) -> Tensor:
    """Relative to the batch, other for the other order, and with a gradient."""
    return len(x) * (x * y + y[:, :1]).sum(1).softmax(0)


def weighted_dcl(t: dict[str, Tensor], group) -> Tensor:
    weigh = relative_weights if group is None else on_whole_batch(relative_weights, group)
    return sk.dcl_loss(t["x"], t["y"], t["temperature"], weight_fn=weigh, group=group)


LOSSES: dict[str, Value] = {
    "info_nce, watched": watched,
    "clip": lambda t, g: sk.clip_loss(t["x"], t["y"], t["scale"], group=g),
    "clip, sum": lambda t, g: sk.clip_loss(t["x"], t["y"], t["scale"], reduction="sum", group=g),
    "siglip": lambda t, g: sk.siglip_loss(t["x"], t["y"], t["scale"], t["bias"], group=g),
    "info_nce": lambda t, g: sk.info_nce_loss(t["x"], t["y"], None, t["temperature"], group=g),
    "info_nce, symmetric": lambda t, g: sk.InfoNCELoss(0.3, symmetric=True, group=g)(t["x"], t["y"]),
    "info_nce, negatives": lambda t, g: sk.info_nce_loss(t["x"], t["y"], t["negatives"], t["temperature"], group=g),
    "info_nce, negatives of their own": lambda t, g: sk.info_nce_loss(
        t["x"], t["y"], torch.stack([t["y"].square(), 1 - t["x"]], 1), t["temperature"], group=g
    ),
    "nt_xent": lambda t, g: sk.nt_xent_loss(t["x"], t["y"], t["temperature"], group=g),
    "supcon": lambda t, g: sk.supcon_loss(t["x"], t["labels"], t["temperature"], group=g),
    "supcon, sum": lambda t, g: sk.supcon_loss(t["x"], t["labels"] % 2, t["temperature"], "sum", group=g),
    "ranking": lambda t, g: ranking(t, g),
    "ranking, per direction": lambda t, g: ranking(
        t, g, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    ),
    "ranking, all directions": lambda t, g: ranking(t, g, reduction="sum", directions=DIRECTIONS),
    "ranking, harder": lambda t, g: ranking(
        t, g, directions=("query_to_doc", "doc_to_query"), hardness_mode="all_negatives", hardness_strength=2.0
    ),
    "ranking, guided": guided_ranking,
    "dclw": lambda t, g: sk.DCLWLoss(0.3, group=g)(t["x"], t["y"]),
    "dcl": lambda t, g: sk.dcl_loss(t["x"], t["y"], t["temperature"], group=g),
    "dcl, weights of the whole batch": weighted_dcl,
    "linear": linear,
    "linear, weighted and smoothed": lambda t, g: linear(t, g, class_weight=t["class_weight"], label_smoothing=0.1),
    "infonce": of_bound("infonce"),
    "infonce, both ways": of_bound("infonce", symmetric=True),
    "dv": of_bound("dv"),
    "mine": mine,
    "nwj": of_bound("nwj"),
    "tuba": of_bound("tuba", log_baseline="row_bias"),
    "js": of_bound("js"),
    "js_divergence": of_bound("js_divergence"),
    "smile": of_bound("smile", tau=0.5),
    "interpolated": of_bound("interpolated", alpha=0.4, log_baseline="row_bias"),
    "flo": of_bound("flo", u="row_bias"),
    "leave_one_out": of_bound("leave_one_out"),
    "club": of_bound("club"),
    "barber_agakov": classifier,
    "cosine": of_critic(lambda: sk.CosineCritic(0.3, learnable=True), positives=True),
    "bilinear": of_critic(lambda: sk.BilinearCritic(D, D)),
    "gaussian": of_critic(lambda: sk.GaussianCritic(1.3, learnable=True)),
    "separable": of_critic(lambda: sk.SeparableCritic(torch.nn.Linear(D, 3), torch.nn.Linear(D, 3))),
    "network": of_critic(lambda: sk.MLPCritic(D, D, hidden=5)),
    "network, positives": of_critic(lambda: sk.MLPCritic(D, D, hidden=5, layers=1), positives=True),
}


def value_and_gradients(name: str, t: dict[str, Tensor], group) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of tensors (by names with their kind), and its gradient by each of them that it depends on."""
    named = bare(t)
    value = LOSSES[name](named, group)
    t = t | {key: made for key, made in named.items() if key.startswith("all/")}  # those of a critic
    leaves = {key: tensor for key, tensor in t.items() if tensor.requires_grad}
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return value.detach(), {key: g for key, g in zip(leaves, found, strict=True) if g is not None}


def of_rank(
    group, schedule: str, averaging: bool, holds: bool = False, device: str = "cpu"
) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """Every loss of a rank's own rows; `holds` leaves small problems to PyTorch, as outside tests."""
    rank, world = group.rank(), group.size()
    batch = sk.GlobalBatch(group, schedule, averaging)
    before, held.HELD_SCORES = held.HELD_SCORES, 2**16 if holds else 0
    try:
        return {name: value_and_gradients(name, part(tensors(), rank, world, device), batch) for name in LOSSES}
    finally:
        held.HELD_SCORES = before
