"""Contrast of labelled features with each other and with a queue, against dense formulas; and the queue."""

import pytest
import torch
import torch.nn.functional as F
from truth import BACKENDS

import simmim_kernels as sk

N, M, D = 13, 21, 5
LABELS = torch.tensor([0, 3, 0, 1, 1, 0, 7, 2, 2, 9, 1, 4, 4])
REF_LABELS = torch.tensor([3, 3, 0, 1, 1, 0, 5, 2, 2, 0, 1, 8, 7, 7, 3, 0, 1, 2, 5, 1, 0])
# Anchors 0, 1, 3 and 7 are rows of the others, of their own label.
INDEX = torch.tensor([2, 14, -1, 19, -1, -1, -1, 8, -1, -1, -1, -1, -1])


def features(n, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=g, dtype=torch.float64).requires_grad_()


def dense_pairs(x, z, labels, ref_labels, index, temperature, normalize):
    """(N, M) scores, and which pairs are positive and which negative."""
    if normalize:
        x, z = F.normalize(x, dim=1), F.normalize(z, dim=1)
    own = index[:, None] == torch.arange(len(z))
    same = labels[:, None] == ref_labels
    return x @ z.T / temperature, same & ~own, ~same & ~own


def supcon(s, positive, negative):
    log_p = s - s.masked_fill(~(positive | negative), -torch.inf).logsumexp(1, keepdim=True)
    has = positive.any(1)
    values = torch.where(has, -log_p.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp(min=1), 0)
    return values, values.sum() / has.sum()


def nt_xent(s, positive, negative):
    others = s.masked_fill(~negative, -torch.inf).logsumexp(1, keepdim=True)
    pairs = -F.logsigmoid(s - others).masked_fill(~positive, 0)
    return pairs.sum(1), pairs.sum() / positive.sum()


CASES = {"supcon": (sk.supcon_loss, supcon), "labelled_nt_xent": (sk.labelled_nt_xent_loss, nt_xent)}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("others", ["none", "ref", "ref with the anchors in it"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_against_dense(name, backend, others, normalize):
    ours, dense = CASES[name]
    x, t = features(N, 0), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    if others == "none":
        ref, given = x, {}
        index, ref_labels = torch.arange(N), LABELS
    else:
        ref, ref_labels = features(M, 1), REF_LABELS
        index = INDEX if "anchors" in others else torch.full((N,), -1)
        given = {"ref": ref, "ref_labels": ref_labels, "ref_index": INDEX if "anchors" in others else None}
    rows, mean = dense(*dense_pairs(x, ref, LABELS, ref_labels, index, t, normalize))
    leaves = [x, t] if ref is x else [x, t, ref]
    weights = torch.rand(N, dtype=torch.float64)
    with sk.use_backend(backend):
        got_rows = ours(x, LABELS, t, "none", normalize=normalize, **given)
        got_mean = ours(x, LABELS, t, normalize=normalize, **given)
        found = torch.autograd.grad((got_rows * weights).sum() + got_mean, leaves)
    torch.testing.assert_close(got_rows, rows, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got_mean, mean, rtol=1e-10, atol=1e-10)
    truths = torch.autograd.grad((rows * weights).sum() + mean, leaves)
    for gradient, truth in zip(found, truths, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_one_class_and_no_positives(name):
    """Without a negative the pairs of NT-Xent lose nothing; without a positive there is no loss. Never NaN."""
    ours = CASES[name][0]
    x = features(4, 0)
    for labels in (torch.zeros(4, dtype=torch.long), torch.arange(4)):
        loss = ours(x, labels)
        (gradient,) = torch.autograd.grad(loss, x)
        assert gradient.isfinite().all()
        if name == "labelled_nt_xent" or labels[1]:
            assert loss == 0
            assert (gradient == 0).all()


def test_the_pairs_of_two_views_are_nt_xent():
    z1, z2 = features(N, 0), features(N, 1)
    index = torch.arange(N).repeat(2)
    torch.testing.assert_close(
        sk.labelled_nt_xent_loss(torch.cat([z1, z2]), index, 0.5), sk.nt_xent_loss(z1, z2, 0.5), rtol=1e-12, atol=0
    )


def test_a_module_is_its_function():
    x, ref = features(N, 0), features(M, 1)
    others = (ref, REF_LABELS, INDEX)
    for module, function in (
        (sk.SupConLoss(0.2, "sum", normalize=False), sk.supcon_loss),
        (sk.LabelledNTXentLoss(0.2, "sum", normalize=False), sk.labelled_nt_xent_loss),
    ):
        assert torch.equal(module(x, LABELS, *others), function(x, LABELS, 0.2, "sum", *others, normalize=False))


def test_wrong_arguments_are_named():
    x, ref = features(N, 0), features(M, 1)
    with pytest.raises(ValueError, match="ref_labels and ref_index must be None"):
        sk.supcon_loss(x, LABELS, ref_labels=LABELS)
    with pytest.raises(TypeError, match="ref_labels must be a tensor"):
        sk.supcon_loss(x, LABELS, ref=ref)
    with pytest.raises(ValueError, match=r"ref_index must be in \[0, 21\)"):
        sk.labelled_nt_xent_loss(x, LABELS, ref=ref, ref_labels=REF_LABELS, ref_index=INDEX + 19)
    with pytest.raises(TypeError, match="normalize must be True or False"):
        sk.supcon_loss(x, LABELS, normalize=1)


def test_a_queue_holds_the_last_features():
    queue = sk.Queue(5, 2, labels=True)
    assert queue.features.shape == (0, 2)
    first, second = torch.arange(6.0).view(3, 2), torch.arange(6.0, 14.0).view(4, 2)
    assert queue.enqueue(first, torch.tensor([1, 2, 3])).tolist() == [0, 1, 2]
    seen = queue.features
    assert queue.enqueue(second.requires_grad_(), torch.tensor([4, 5, 6, 7])).tolist() == [3, 4, 0, 1]
    assert torch.equal(seen, first)
    assert queue.labels.tolist() == [6, 7, 3, 4, 5]
    assert torch.equal(queue.features, torch.stack([second[2], second[3], first[2], second[0], second[1]]).detach())
    again = sk.Queue(5, 2, labels=True)
    again.load_state_dict(queue.state_dict())
    assert torch.equal(again.features, queue.features)
    assert again.enqueue(first, torch.tensor([1, 2, 3])).tolist() == [2, 3, 4]
    with pytest.raises(ValueError, match="at most 5 rows"):
        queue.enqueue(torch.zeros(6, 2), torch.zeros(6, dtype=torch.long))
    with pytest.raises(ValueError, match="labels must be given"):
        queue.enqueue(first)
    with pytest.raises(ValueError, match="labels must be True"):
        _ = sk.Queue(5, 2).labels


def test_a_queue_with_labels_is_a_cross_batch_memory():
    """The anchors are in it already, and are left out."""
    queue, before, now = sk.Queue(20, D, labels=True, dtype=torch.float64), features(6, 0), features(N, 1)
    queue.enqueue(before, LABELS[:6])
    slots = queue.enqueue(now, LABELS)
    loss = sk.supcon_loss(now, LABELS, ref=queue.features, ref_labels=queue.labels, ref_index=slots)
    ref, ref_labels = torch.cat([before, now]).detach(), torch.cat([LABELS[:6], LABELS])
    index = torch.arange(6, 6 + N)
    assert loss == sk.supcon_loss(now, LABELS, ref=ref, ref_labels=ref_labels, ref_index=index)
