"""Every drop-in against the class of the library that it stands in for: value and all gradients, over its own options.

The rules: 1e-10 in float64 and 1e-5 in float32, relative to the largest entry; under bfloat16 autocast no further from
the truth than the library itself. Tests of a library that is not installed are skipped: the extra `peers` has them all.
"""

import contextlib
import functools
import importlib
import itertools
import warnings

import drop_in_jobs
import pytest
import sharded_jobs
import torch
import torch.nn.functional as F
from ranks import Ranks
from torchvision_stand_in import stand_in_for_torchvision

REASON = "a library of the extra `peers` is not installed"
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SIZES = [1, 2, 3, 33]


def library(name):
    """Our module and theirs, or a skip."""
    stand_in_for_torchvision()
    module = {"open_clip": "open_clip.loss", "lightly": "lightly.loss", "torch_mist": "torch_mist.estimators"}.get(name)
    theirs = pytest.importorskip(module or name, reason=f"{REASON}: {name}")
    return pytest.importorskip(f"simmim_kernels.drop_in.{name}"), theirs


def features(n, count=2, d=6, dtype=torch.float64, unit=False):
    g = torch.Generator().manual_seed(n)
    found = [torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(count)]
    return [(F.normalize(t, dim=1) if unit else t).to(dtype).requires_grad_() for t in found]


def number(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def outcome(loss, leaves):
    """Value and gradients; a loss of several parts is a dict or a tuple of them."""
    parts = list(loss.values()) if isinstance(loss, dict) else list(loss) if isinstance(loss, tuple) else [loss]
    total = sum((k + 1) * part for k, part in enumerate(parts))
    return torch.stack([p.detach().double() for p in parts]), torch.autograd.grad(total, leaves, allow_unused=True)


def assert_same(ours, theirs, leaves, tolerance):
    (value, found), (want, truths) = outcome(ours, leaves), outcome(theirs, leaves)
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
    assert (value - want).abs().max() <= tolerance * max(want.abs().max(), 1)
    largest = max(t.abs().max() for t in truths if t is not None)
    # What is 0 but for rounding is so on the scale of the others, or of scores of some ten.
    floor = 100 * torch.finfo(leaves[0].dtype).eps * max(largest, 1)
    for gradient, truth in zip(found, truths, strict=True):
        assert (gradient is None) == (truth is None)
        if truth is not None:
            assert (gradient - truth).abs().max() <= max(tolerance * truth.abs().max(), floor)


def assert_no_worse(ours, theirs, leaves):
    """Of losses of features, under bfloat16 autocast: no further from the truth than theirs, but for a floor."""
    truth = torch.cat([g.flatten() for g in outcome(theirs(*leaves), leaves)[1]])
    low = [t.detach().float().requires_grad_() for t in leaves]
    errors = []
    for loss in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(*low)
        found = torch.cat([g.flatten() for g in outcome(value, low)[1]])
        errors.append((found.double() - truth).norm() / truth.norm())
    assert errors[0] <= max(errors[1], torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("output_dict", [False, True])
def test_open_clip(n, dtype, output_dict, monkeypatch):
    ours, theirs = library("open_clip")
    monkeypatch.setattr(ours.SigLipLoss, "dense_pairs", 0)
    x, y, teacher_x, teacher_y = features(n, 4, dtype=dtype, unit=True)
    scale, bias, teacher_scale = number(14.3, dtype), number(-3.0, dtype), number(9.0, dtype)
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(n, 5, 7, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    captions = torch.randint(0, 7, (n, 5), generator=g)
    captions[:, 0] = 3
    end = {"output_dict": output_dict}
    cases = {
        "ClipLoss": ((), [(x, y, scale), (x, y, scale, bias)], (x, y, scale, bias)),
        "SigLipLoss": ((), [(x, y, scale, bias), (x, y, scale, None)], (x, y, scale, bias)),
        "CoCaLoss": ((2.0, 0.5), [(x, y, logits, captions, scale)], (x, y, logits, scale)),
        "DistillClipLoss": (
            (),
            [(x, y, scale, teacher_x, teacher_y, teacher_scale)],
            (x, y, scale, teacher_x, teacher_y, teacher_scale),
        ),
    }
    for name, (options, calls, leaves) in cases.items():
        for call in calls:
            results = [getattr(module, name)(*options)(*call, **end) for module in (ours, theirs)]
            assert_same(*results, leaves, TOLERANCE[dtype])


def test_open_clip_settings_and_autocast(monkeypatch):
    ours, theirs = library("open_clip")
    monkeypatch.setattr(ours.SigLipLoss, "dense_pairs", 0)
    x, y = features(64, 2, d=32, unit=True)
    for name in ("ClipLoss", "SigLipLoss"):
        losses = [getattr(module, name)(cache_labels=True, rank=0, world_size=1) for module in (ours, theirs)]
        assert isinstance(losses[0], getattr(theirs, name))
        assert vars(losses[0]).keys() == vars(losses[1]).keys()
        assert_no_worse(*(lambda x, y, loss=loss: loss(x, y, 10.0, -5.0) for loss in losses), (x, y))
    with pytest.raises(ValueError, match=r"ClipLoss\(world_size=\) .* got 2 and 1"):
        ours.ClipLoss(world_size=2)(x, y, 1.0)


@pytest.fixture(scope="module")
def ranks():
    """All ranks of a world, by their number; started when a test that is not skipped first asks for them."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda world: stack.enter_context(Ranks(world)))


@pytest.mark.parametrize("name", drop_in_jobs.CALLS)
def test_several_processes_have_the_loss_of_one(ranks, name):
    """The value, and the gradients that DDP's mean over processes makes those of the originals on the whole batch."""
    library(name)
    world = 3
    batch = [sharded_jobs.features(rank) for rank in range(world)]
    whole = drop_in_jobs.leaves([torch.cat(parts) for parts in zip(*batch, strict=True)])
    theirs = importlib.import_module(drop_in_jobs.THEIRS[name])
    originals = drop_in_jobs.outcomes(name, theirs, whole)
    found = ranks(world).run(world, drop_in_jobs.of_rank, name, "ours")
    for loss, (want, truths) in originals.items():
        for of_rank in found:
            if not loss.startswith("CoCaLoss"):  # whose captions are each process's own
                torch.testing.assert_close(of_rank[loss][0], want, rtol=1e-10, atol=1e-10, msg=loss)
        for k, truth in enumerate(truths):
            parts = [of_rank[loss][1][k] for of_rank in found]
            if truth is None:
                assert parts == [None] * world
                continue
            mean = (torch.cat(parts) if truth.dim() else sum(parts)) / world
            torch.testing.assert_close(mean, truth, rtol=1e-9, atol=1e-12, msg=f"{loss}, {k}")


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", drop_in_jobs.CALLS)
def test_original_gradients(ranks, name, world):
    """On request each process has the original's own value and gradients, whatever its flags make of them."""
    library(name)
    ours, theirs = (ranks(world).run(world, drop_in_jobs.of_rank, name, whose) for whose in ("as original", "theirs"))
    for found, truth in zip(ours, theirs, strict=True):
        assert found.keys() == truth.keys()
        for loss, (want, truths) in truth.items():
            if loss == "GISTEmbedLoss, anchors True":
                assert "contrast_anchors=False" in found[loss]
                continue
            value, gradients = found[loss]
            torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-10, msg=loss)
            for k, (gradient, of_original) in enumerate(zip(gradients, truths, strict=True)):
                assert (gradient is None) == (of_original is None), (loss, k)
                if gradient is not None:
                    torch.testing.assert_close(gradient, of_original, rtol=1e-10, atol=1e-10, msg=f"{loss}, {k}")


@pytest.mark.parametrize("n", SIZES[1:])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("temperature", [0.1, 0.5, -0.5])
def test_lightly(n, dtype, temperature):
    ours, theirs = library("lightly")
    leaves = features(n, dtype=dtype)

    def weights(a, b):
        return 1 + (a * b).sum(1).square()

    for name, options in (
        ("NTXentLoss", {}),
        ("DCLLoss", {}),
        ("DCLLoss", {"weight_fn": weights}),
        ("DCLWLoss", {"sigma": 0.7}),
    ):
        results = [getattr(module, name)(temperature, **options)(*leaves) for module in (ours, theirs)]
        assert_same(*results, leaves, TOLERANCE[dtype])


def test_lightly_memory_bank():
    """Their bank, step by step, until it has been overrun; and left alone where no gradient is wanted."""
    ours, theirs = library("lightly")
    losses = [module.NTXentLoss(0.2, memory_bank_size=(50, 6)) for module in (ours, theirs)]
    losses[0].memory_bank.bank.copy_(losses[1].memory_bank.bank)
    for step, n in enumerate((20, 1, 20, 20, 3)):
        leaves = features(n, dtype=torch.float32)
        assert_same(*(loss(*leaves) for loss in losses), leaves, 1e-5)
        if step == 2:
            with torch.no_grad():
                assert torch.isclose(*(loss(*(t.detach() for t in leaves)) for loss in losses))
        assert torch.equal(losses[0].memory_bank.bank, losses[1].memory_bank.bank)
        assert torch.equal(losses[0].memory_bank.bank_ptr, losses[1].memory_bank.bank_ptr)
    assert losses[0].state_dict().keys() == losses[1].state_dict().keys()
    with pytest.raises(ValueError, match="temperature"):
        ours.NTXentLoss(0.0)
    x, y = features(64, 2, d=32)
    assert_no_worse(ours.NTXentLoss(0.1), theirs.NTXentLoss(0.1), (x, y))
    assert_no_worse(ours.DCLWLoss(), theirs.DCLWLoss(), (x, y))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_info_nce(n, dtype, reduction, monkeypatch):
    ours, theirs = library("info_nce")
    monkeypatch.setattr(ours, "DENSE_PAIRS", 0)
    x, y, shared = features(n, 3, dtype=dtype)
    own = torch.stack(features(n, 4, dtype=dtype), 1).detach().requires_grad_()
    for mode, negatives in (("unpaired", None), ("unpaired", shared), ("paired", own)):
        results = [module.InfoNCE(0.3, reduction, mode)(x, y, negatives) for module in (ours, theirs)]
        leaves = [t for t in (x, y, negatives) if t is not None]
        assert_same(*results, leaves, TOLERANCE[dtype])
        rows = [module.info_nce(x, y, negatives, 0.3, "none", mode) for module in (ours, theirs)]
        torch.testing.assert_close(*rows)
    with pytest.raises(ValueError, match="negative_keys must have 3 dimensions"):
        ours.info_nce(x, y, shared, negative_mode="paired")


@pytest.mark.parametrize("name", ["open_clip", "info_nce"])
def test_small_batches_run_the_original_but_in_half_precision(name, monkeypatch):
    ours, _ = library(name)
    asked = []
    if name == "open_clip":
        monkeypatch.setattr(ours, "siglip_loss", lambda *a, **k: asked.append(1) or a[0].sum())
        loss, side = (lambda x, y: ours.SigLipLoss()(x, y, 9.0, -1.0)), 128
    else:
        monkeypatch.setattr(ours, "info_nce_loss", lambda *a, **k: asked.append(1) or a[0].sum())
        loss, side = ours.InfoNCE(), 256
    x, y = features(side + 1, dtype=torch.float32)
    loss(x[:side], y[:side])
    assert not asked
    loss(x, y)
    loss(x[:9].bfloat16(), y[:9].bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        loss(x[:9], y[:9])
    assert len(asked) == 3


DIRECTIONS = [
    ("query_to_doc",),
    ("query_to_doc", "doc_to_query"),
    ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
]
HARDNESS = [(None, 0.0), ("in_batch_negatives", 9.0), ("hard_negatives", 5.0), ("all_negatives", 2.0)]


def test_ranking_of_half_precision():
    """cos_sim makes float32 of it, before it normalises."""
    ours, _ = library("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses as theirs

    leaves, model = features(9, 2, dtype=torch.bfloat16), torch.nn.Sequential(torch.nn.Identity())
    values, gradients = [], []
    for module in (ours, theirs):
        values.append(module.MultipleNegativesRankingLoss(model).compute_loss_from_embeddings(leaves, None))
        gradients.append(torch.cat(torch.autograd.grad(values[-1], leaves)).double())
    torch.testing.assert_close(*values, rtol=1e-6, atol=0)
    assert (gradients[0] - gradients[1]).abs().max() <= torch.finfo(torch.bfloat16).eps * gradients[1].abs().max()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize("similarity", ["cos_sim", "dot_score"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_ranking_of_sentence_transformers(n, columns, similarity, dtype):
    ours, _ = library("sentence_transformers")
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer import losses as theirs

    leaves, model = features(n, columns, dtype=dtype), torch.nn.Sequential(torch.nn.Identity())
    for directions, partition, (mode, strength) in itertools.product(DIRECTIONS, ("joint", "per_direction"), HARDNESS):
        if partition == "per_direction" and len(directions) == 4:
            continue
        options = {
            "scale": 20.0 if similarity == "cos_sim" else 0.7,
            "similarity_fct": getattr(util, similarity),
            "directions": directions,
            "partition_mode": partition,
            "hardness_mode": mode,
            "hardness_strength": strength,
        }
        losses = [m.MultipleNegativesRankingLoss(model, **options) for m in (ours, theirs)]
        assert losses[0].get_config_dict() == losses[1].get_config_dict()
        results = [loss.compute_loss_from_embeddings(leaves, None) for loss in losses]
        assert_same(*results, leaves, TOLERANCE[dtype])
        # The cached one makes the gradients itself.
        cached = ours.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2, **options)
        parts = [[part.detach().requires_grad_() for part in leaf.split(2)] for leaf in leaves]
        value = cached.calculate_loss(parts, with_backward=True)
        assert torch.equal(value, results[0].detach())
        grads = outcome(losses[0].compute_loss_from_embeddings(leaves, None), leaves)[1]
        for column, gradient in zip(parts, grads, strict=True):
            assert torch.equal(torch.cat([part.grad for part in column]), gradient)


class Tower(torch.nn.Module):
    """What their losses want of a model."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(5, 4)
        self.dropout = torch.nn.Dropout(0.3)

    def forward(self, features):
        return {"sentence_embedding": self.dropout(self.linear(features["x"]))}


def test_other_losses_of_sentence_transformers():
    """The whole of the cached forward and backward, with dropout; the symmetric ones; what is refused."""
    ours, _ = library("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses as theirs

    torch.manual_seed(0)
    model, batch = torch.nn.Sequential(Tower()), [{"x": torch.randn(10, 5)} for _ in range(3)]
    for name in ("CachedMultipleNegativesRankingLoss", "CachedMultipleNegativesSymmetricRankingLoss"):
        found = []
        for module in (ours, theirs):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                loss = getattr(module, name)(model, mini_batch_size=3)
            model.zero_grad()
            torch.manual_seed(1)
            value = loss(batch, None)
            value.backward()
            found.append((value.detach(), model[0].linear.weight.grad.clone(), loss.get_config_dict()))
        torch.testing.assert_close(found[0][:2], found[1][:2], rtol=1e-5, atol=1e-6)
        assert found[0][2] == found[1][2]
    leaves = features(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        symmetric = [m.MultipleNegativesSymmetricRankingLoss(model) for m in (ours, theirs)]
    assert_same(*(loss.compute_loss_from_embeddings(leaves, None) for loss in symmetric), leaves, 1e-10)
    odd = ours.MultipleNegativesRankingLoss(model, similarity_fct=lambda a, b: a @ b.T)
    with pytest.raises(NotImplementedError, match="similarity_fct"):
        odd.compute_loss_from_embeddings(leaves, None)
    loss = [m.MultipleNegativesRankingLoss(model) for m in (ours, theirs)]
    wide = features(64, 2, d=32)
    assert_no_worse(*(lambda *e, loss=one: loss.compute_loss_from_embeddings(list(e), None) for one in loss), wide)


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize(("anchors", "positives"), [(True, True), (False, False)])
@pytest.mark.parametrize("n", SIZES[1:])
def test_gist(n, anchors, positives, strategy, columns):
    """The whole forward, of losses without tokenizers: their constructors ask for real models."""
    ours, _ = library("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses as theirs

    torch.manual_seed(0)
    model, leaves = Tower().double().eval(), features(n, columns, d=5)
    results = []
    for kind in (ours.GISTEmbedLoss, theirs.GISTEmbedLoss):
        contrasts = {"contrast_anchors": anchors, "contrast_positives": positives}
        loss = drop_in_jobs.gist(kind, model, margin_strategy=strategy, **contrasts)
        results.append(loss([{"x": leaf} for leaf in leaves], None))
    assert_same(*results, (*leaves, *model.parameters()), 1e-10)


def labels_of(n):
    return torch.tensor([0, 1, 1, 2, 0, 3, 1])[torch.arange(n) % 7]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["SupConLoss", "NTXentLoss"])
def test_pytorch_metric_learning(name, n, dtype, monkeypatch):
    ours, _ = library("pytorch_metric_learning")
    monkeypatch.setattr(ours.SupConLoss, "dense_pairs", 0)
    from pytorch_metric_learning import distances, losses, reducers, regularizers

    (x,), (ref,) = features(n, 1, dtype=dtype), features(n + 4, 1, dtype=dtype)
    labels, ref_labels = labels_of(n), labels_of(n + 4).flip(0)
    weights = torch.arange(1.0, 5.0, dtype=dtype)
    options = [
        {},
        {"temperature": 0.5},
        {"distance": distances.DotProductSimilarity(normalize_embeddings=False), "temperature": 2.0},
        {"distance": distances.LpDistance(power=2), "temperature": 0.5},
        {"distance": distances.LpDistance(power=2, normalize_embeddings=False), "temperature": 3.0},
        {"reducer": reducers.MeanReducer()},
        {"reducer": reducers.ClassWeightedReducer(weights)},
        {"reducer": reducers.ThresholdReducer(low=0.5)},
        {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.1},
    ]
    for option in options:
        pair = [getattr(ours, name)(**option), getattr(losses, name)(**option)]
        for arguments in ((labels,), (labels, None, ref, ref_labels), (torch.zeros_like(labels),)):
            results = [loss(x, *arguments) for loss in pair]
            assert_same(*results, (x, ref), TOLERANCE[dtype])


def test_pytorch_metric_learning_around_a_loss(monkeypatch):
    """Its wrappers, its memory across batches, a miner's tuples, and what is refused."""
    ours, _ = library("pytorch_metric_learning")
    monkeypatch.setattr(ours.SupConLoss, "dense_pairs", 0)
    from pytorch_metric_learning import distances, losses, miners
    from pytorch_metric_learning.utils import distributed

    x, y = features(12)
    for name in ("SupConLoss", "NTXentLoss"):
        pair = [getattr(module, name)(temperature=0.3) for module in (ours, losses)]
        for symmetric in (True, False):
            wrapped = [losses.SelfSupervisedLoss(loss, symmetric) for loss in pair]
            assert_same(*(loss(x, y) for loss in wrapped), (x, y), 1e-10)
        distributed.DistributedLossWrapper(pair[0])
        memories = [ours.CrossBatchMemory(pair[0], 6, 30), losses.CrossBatchMemory(pair[1], 6, 30)]
        for step in range(4):
            (batch,) = features(12, 1)
            batch = (batch + step).detach().requires_grad_()
            given = (batch, (labels_of(12) + step) % 4)
            assert_same(*(memory(*given) for memory in memories), (batch,), 1e-10)
            assert torch.equal(memories[0].embedding_memory, memories[1].embedding_memory)
        mask = torch.arange(12) % 3 == 0
        assert_same(*(memory(x, labels_of(12), enqueue_mask=mask) for memory in memories), (x,), 1e-10)
        mined = miners.MultiSimilarityMiner()(x, labels_of(12))
        with pytest.warns(UserWarning, match="was given indices_tuple"):
            dense = pair[0](x, labels_of(12), mined)
        assert_same(dense, pair[1](x, labels_of(12), mined), (x,), 1e-10)
        with pytest.raises(NotImplementedError, match=r"distance must be .* got LpDistance\(p=2, power=1\)"):
            getattr(ours, name)(distance=distances.LpDistance())(x, labels_of(12))
        with pytest.raises(ValueError, match="cannot both be None"):
            pair[0](x)
    monkeypatch.undo()
    small = [module.SupConLoss() for module in (ours, losses)]
    assert torch.equal(*(loss(x, labels_of(12)) for loss in small))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers(kind):
    ours, transformers = library("transformers")
    config = {
        "text_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 30, "max_position_embeddings": 8, "projection_dim": 16, "projection_size": 16,
            "bos_token_id": 0, "eos_token_id": 29, "pad_token_id": 1,
        },
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 8, "patch_size": 4, "projection_dim": 16,
        },
    }  # fmt: skip
    prefix = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    torch.manual_seed(0)
    of_config = getattr(transformers, f"{prefix}Config")(**config)
    model = getattr(transformers, f"{prefix}Model")(of_config).double().train()
    g = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(2, 29, (6, 8), generator=g),
        "pixel_values": torch.randn(6, 3, 8, 8, generator=g, dtype=torch.float64),
        "return_loss": True,
    }
    leaves = list(model.parameters())
    before = outcome(model(**batch).loss, leaves)
    patched = getattr(ours, f"apply_to_{kind}")(model)
    assert patched is model
    output = model(**batch)
    value, found = outcome(output.loss, leaves)
    assert (value - before[0]).abs() <= 1e-10
    for gradient, truth in zip(found, before[1], strict=True):
        assert (gradient is None) == (truth is None)
        if truth is not None:
            assert (gradient - truth).abs().max() <= 1e-10 * max(1, truth.abs().max())
    assert output.logits_per_image is None
    assert len(output.text_embeds) == len(output.image_embeds) == 6
    assert torch.equal(model(**batch, return_dict=False)[0], output.loss)
    assert model(**{**batch, "return_loss": False}).logits_per_image.shape == (6, 6)
    assert model.eval()(**batch).logits_per_image.shape == (6, 6)
    with pytest.raises(TypeError, match="model must be a"):
        getattr(ours, f"apply_to_{kind}")(torch.nn.Identity())


@pytest.mark.parametrize("neg_samples", [0, -1])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_torch_mist(neg_samples, dtype):
    ours, theirs = library("torch_mist")
    from torch_mist.baseline import LearnableBaseline
    from torch_mist.critic import JointCritic, SeparableCritic

    torch.manual_seed(0)
    net = torch.nn.Linear(6, 6).to(dtype)
    critic = SeparableCritic(net, torch.nn.Linear(6, 6).to(dtype), temperature=2.0)
    baseline = LearnableBaseline(torch.nn.Linear(6, 1).to(dtype))
    for n in SIZES[1:]:
        x, y = features(n, dtype=dtype)
        leaves = (x, y, *critic.parameters())
        for name in ("InfoNCE", "NWJ", "TUBA", "JS", "SMILE", "MINE"):
            more = {"baseline": baseline} if name == "TUBA" else {}
            pair = [getattr(m, name)(critic=critic, neg_samples=neg_samples, **more) for m in (ours, theirs)]
            for module in pair:
                module.to(dtype)
            assert_same(*(m.log_ratio(x, y).sum() for m in pair), leaves, TOLERANCE[dtype])
            if neg_samples == 0 or name not in ("JS", "SMILE"):
                for step in (1, 2):  # the running mean of MINE; what they know of a batch they keep
                    losses = [m.batch_loss(x * 0.9**step, y).sum() for m in pair]
                    assert_same(*losses, leaves, TOLERANCE[dtype])
            else:
                s = critic(0.9 * x[None], y[:, None])
                off = F.softplus(s)[~torch.eye(n, dtype=torch.bool)].sum() / (n - 1)
                want = F.softplus(-s.diagonal()).sum() + off
                assert_same(pair[0].batch_loss(x * 0.9, y).sum(), want, leaves, TOLERANCE[dtype])
    with pytest.raises(NotImplementedError, match="neg_samples must be 0 or -1"):
        ours.InfoNCE(critic, neg_samples=3).batch_loss(x, y)
    with pytest.raises(NotImplementedError, match="critic must be a SeparableCritic"):
        ours.NWJ(JointCritic(torch.nn.Linear(12, 1).to(dtype)), neg_samples=neg_samples).batch_loss(x, y)
