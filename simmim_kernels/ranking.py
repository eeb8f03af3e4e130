"""In-batch ranking of documents by queries, with hard negatives, and its four directions.

Every term is a log-sum-exp over pairs other than the positive one; the terms meet in vectors of N numbers.
Features have shape (N, d); dtypes, `temperature`, `reduction`, `group` and errors (TypeError or ValueError, raised with
the argument's name) are as in losses.py, and losses are in nats.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss_parts import REDUCTIONS, Loss, inverse, reduced, rowwise_scores
from .operator.computation import without_autocast
from .operator.cross_entropy import cross_entropy_from_others
from .operator.global_batch import Shards
from .problem import validation
from .problem.pointwise import logsumexp_over_first
from .scores import PairwiseScores

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
PARTITIONS = ("joint", "per_direction")
HARDNESS = ("in_batch_negatives", "hard_negatives", "all_negatives")


def ranking_loss(
    queries: Tensor,
    positives: Tensor,
    negatives: Sequence[Tensor] = (),
    temperature: float | Tensor = 0.05,
    reduction: str = "mean",
    directions: Sequence[str] = ("query_to_doc",),
    partition_mode: str = "joint",
    hardness_mode: str | None = None,
    hardness_strength: float = 0.0,
    normalize: bool = True,
    group: Any = None,
) -> Tensor:
    """In-batch ranking (Henderson et al. 2017), as sentence-transformers 6.2's MultipleNegativesRankingLoss.

    queries, positives: (N, d), one pair a row; negatives: K tensors (N, d), a hard negative of each query in each. The
    documents are positives and negatives, and a query's negatives all documents but its positive. The loss is
    log Z_i - s_ii, with Z_i summed over the candidates of the chosen directions: "query_to_doc" (always), and of query
    i also the other queries ("query_to_query"), of its positive all queries ("doc_to_query") and the documents of
    others ("doc_to_doc"). partition_mode "joint" has one Z for all, as GTE (Li et al. 2023); "per_direction" averages
    the losses of query_to_doc and doc_to_query.

    hardness_mode adds hardness_strength times the similarity, without gradient, to the scores query_to_doc of
    "in_batch_negatives" (Lan et al. 2025, eq. 5), of a query's own "hard_negatives", or of "all_negatives".
    normalize=False takes dot products for cosines. With a group the documents, and the other queries, are those of all
    ranks.
    """
    validation.choice(reduction, "reduction", REDUCTIONS)
    check_options(directions, partition_mode, hardness_mode, hardness_strength)
    named = {"positives": positives} | {f"negatives[{k}]": tensor for k, tensor in enumerate(negatives)}
    for name, tensor in named.items():
        validation.operands(queries, tensor, ("queries", name), same_length=True, may_be_empty=group is not None)
    scale = inverse(temperature, queries)
    if normalize:
        queries, positives, *negatives = (F.normalize(t, dim=1) for t in (queries, positives, *negatives))
    documents = torch.cat([positives, *negatives]) if negatives else positives
    scores = PairwiseScores(queries, documents, scale=scale, group=group)
    shards = scores._shards
    hard = hardness_mode if hardness_strength > 0 else None
    chosen = set(directions)
    if hard is None and (partition_mode == "per_direction" or chosen == {"query_to_doc"}):
        return scores._reduced_entropies("both" if "doc_to_query" in chosen else "rows", reduction)

    if hard is not None:
        of_queries = _with_hardness(queries, documents, negatives, scale, hard, hardness_strength, shards)
        of_documents = None
        if "doc_to_query" in chosen:
            pairs = PairwiseScores(queries, positives, scale=scale, group=_of_pairs(shards))
            of_documents = pairs.marginal.logsumexp(0)
    elif "doc_to_query" in chosen:
        of_queries, of_documents = scores.marginal.logsumexps()
        of_documents = of_documents[: len(queries)]
    else:
        of_queries, of_documents = scores.marginal.logsumexp(1), None
    joint = scores.joint
    if partition_mode == "per_direction":
        terms = [cross_entropy_from_others(t, joint) for t in (of_queries, of_documents) if t is not None]
        return reduced(torch.stack(terms).mean(0), reduction, shards)
    parts = [of_queries] if of_documents is None else [of_queries, of_documents]
    if "query_to_query" in chosen:
        among = PairwiseScores(queries, queries, scale=scale, group=_of_pairs(shards))
        parts.append(among.marginal.logsumexp(1))
    if "doc_to_doc" in chosen:
        own = _places(queries, shards)
        among = PairwiseScores(positives, documents, scale=scale, group=shards)
        among = among.exclude(own, own.repeat(1 + len(negatives)))
        parts.append(among.logsumexp(1))
    others = logsumexp_over_first(torch.stack(parts))
    if of_documents is None:
        return reduced(cross_entropy_from_others(others, joint), reduction, shards)
    # The positive pair is a candidate in both directions: log(2 e^joint + e^others) - joint.
    return reduced(math.log(2) + cross_entropy_from_others(others - math.log(2), joint), reduction, shards)


def _places(queries: Tensor, shards: Shards | None) -> Tensor:
    """(N,) int64, the places of this rank's queries among those of all ranks."""
    first = 0 if shards is None else shards.first_row
    return torch.arange(first, first + len(queries), device=queries.device)


def _of_pairs(shards: Shards | None) -> Shards | None:
    """Of scores whose candidates are as many as the queries, without hard negatives."""
    return None if shards is None else replace(shards, columns=shards.rows)


def _with_hardness(
    queries: Tensor,
    documents: Tensor,
    negatives: Sequence[Tensor],
    scale: Tensor,
    mode: str,
    strength: float,
    shards: Shards | None,
) -> Tensor:
    """(N,) log-sum-exps of query_to_doc over all but the positives, those that `mode` says with their penalty."""
    own = _places(queries, shards)
    x, y, in_batch_scale = queries, documents, scale
    if mode != "hard_negatives":
        # (scale + strength) <x, y> with the gradient of scale <x, y>.
        in_batch_scale = scale + strength
        share = (scale / in_batch_scale).detach()
        x, y = (t.detach() + share * (t - t.detach()) for t in (x, y))
    others = PairwiseScores(x, y, scale=in_batch_scale, group=shards).exclude(own, own.repeat(1 + len(negatives)))
    in_batch = others.logsumexp(1)
    if not negatives:
        return in_batch
    one = torch.ones_like(scale)
    own_negatives = torch.stack(list(negatives), 1)
    similarity = rowwise_scores(queries, own_negatives, "negatives", one, False, may_be_empty=shards is not None)
    with without_autocast(queries.device):
        own_scores = scale * similarity
        if mode != "in_batch_negatives":
            own_scores = own_scores + strength * similarity.detach()
        return logsumexp_over_first(torch.stack([in_batch, own_scores.logsumexp(1)]))


def guided_ranking_loss(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None,
    guides: Sequence[Tensor],
    temperature: float | Tensor = 0.01,
    reduction: str = "mean",
    margin: float = 0.0,
    relative: bool = False,
    contrast_anchors: bool = True,
    contrast_positives: bool = True,
    group: Any = None,
) -> Tensor:
    """Ranking without false negatives (GISTEmbed, Solatorio 2024), as sentence-transformers 6.2's GISTEmbedLoss.

    queries, positives (N, d), and negatives (N, d) or None; guides: another model's embeddings (N, g) of the two or
    three, in this order. Candidates of query i are all positives and negatives; with contrast_anchors the queries, too,
    and with contrast_positives its positive against all positives. Those are left out whose cosine by the guides is
    greater than that of pair i less the margin, or, where it is relative, less the margin times its size; the positive
    stays. With a group candidates are those of all ranks.
    """
    validation.choice(reduction, "reduction", REDUCTIONS)
    given = [queries, positives] if negatives is None else [queries, positives, negatives]
    if len(guides) != len(given):
        raise ValueError(f"guides must be {len(given)} tensors, one for each of what they guide, got {len(guides)}")
    for tensors in (given, guides):
        for k, tensor in enumerate(tensors[1:], 1):
            names = ("queries", f"tensor {k}")
            validation.operands(tensors[0], tensor, names, same_length=True, may_be_empty=group is not None)
    scale, margin = inverse(temperature, queries), validation.number(margin, "margin")
    queries, positives, *rest = (F.normalize(t, dim=1) for t in given)
    with without_autocast(queries.device):
        guide_queries, guide_positives, *guide_rest = (F.normalize(t.detach(), dim=1) for t in guides)
        paired = (guide_queries * guide_positives).sum(1)
        limit = paired - (margin * paired.abs() if validation.flag(relative, "relative") else margin)
    documents, guide_documents = [positives, *rest], [guide_positives, *guide_rest]
    if validation.flag(contrast_anchors, "contrast_anchors"):
        documents, guide_documents = [*documents, queries], [*guide_documents, guide_queries]
    scores = PairwiseScores(queries, torch.cat(documents), scale=scale, group=group)
    shards = scores._shards
    parts = [scores.marginal.exclude_above(guide_queries, torch.cat(guide_documents), limit).logsumexp(1)]
    if validation.flag(contrast_positives, "contrast_positives"):
        among = PairwiseScores(positives, positives, scale=scale, group=_of_pairs(shards))
        parts.append(among.exclude_above(guide_positives, guide_positives, limit).logsumexp(1))
    others = logsumexp_over_first(torch.stack(parts))
    return reduced(cross_entropy_from_others(others, scores.joint), reduction, shards)


def check_options(
    directions: Sequence[str], partition_mode: str, hardness_mode: str | None, hardness_strength: float
) -> None:
    if isinstance(directions, str) or "query_to_doc" not in directions:
        raise ValueError(f"directions must be a sequence with 'query_to_doc' in it, got {validation.shown(directions)}")
    for direction in directions:
        validation.choice(direction, "directions", DIRECTIONS)
    validation.choice(partition_mode, "partition_mode", PARTITIONS)
    if partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(directions):
        raise ValueError(
            "partition_mode must be 'joint' with the directions query_to_query and doc_to_doc, which have no positive "
            f"pair; got {partition_mode!r}"
        )
    if hardness_mode is not None:
        validation.choice(hardness_mode, "hardness_mode", HARDNESS)
    if not validation.number(hardness_strength, "hardness_strength") >= 0:
        raise ValueError(f"hardness_strength must be at least 0, got {hardness_strength!r}")


class RankingLoss(Loss):
    """`ranking_loss` as a Module: forward(queries (N, d), positives (N, d), *negatives (N, d))."""

    def __init__(
        self,
        temperature: float | Tensor = 0.05,
        reduction: str = "mean",
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: str = "joint",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        normalize: bool = True,
        group: Any = None,
    ):
        check_options(directions, partition_mode, hardness_mode, hardness_strength)
        super().__init__(
            temperature=temperature,
            reduction=reduction,
            directions=directions,
            partition_mode=partition_mode,
            hardness_mode=hardness_mode,
            hardness_strength=hardness_strength,
            normalize=normalize,
            group=group,
        )

    def forward(self, queries: Tensor, positives: Tensor, *negatives: Tensor) -> Tensor:
        return ranking_loss(queries, positives, negatives, **self._options)
