"""Bad input: a ValueError or TypeError that names the argument, what it got and what it needs."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

import simmim_kernels as sk

X, Y = torch.randn(6, 4), torch.randn(6, 4)
META = torch.empty(6, 4, device="meta")
LONG = torch.zeros(6, 4, dtype=torch.long)

PAIRS = {
    "mismatched d": (
        (X, Y[:, :3]),
        ValueError,
        r"{0} and {1} must have the same number of columns d, got \(6, 4\) and \(6, 3\)",
    ),
    "integers": ((LONG, LONG), TypeError, r"{0} must have dtype float64.*got a int64 tensor of shape \(6, 4\)"),
    "complex": ((X.to(torch.complex64), Y), TypeError, "{0} must have dtype"),
    "two dtypes": ((X, Y.double()), TypeError, "{0} and {1} must have one dtype, got torch.float32 and torch.float64"),
    "two devices": ((X, META), ValueError, "{0} and {1} must be on one device, got cpu and meta"),
    "a list": (([[1.0]], Y), TypeError, "{0} must be a tensor of shape .N, d., got list"),
    "one dimension": ((X[0], Y), ValueError, r"{0} must have shape \(N, d\), got a float32 tensor of shape \(4,\)"),
    "three dimensions": ((X, Y[None]), ValueError, r"{1} must have shape \(N, d\)"),
    "no rows": ((X[:0], Y[:0]), ValueError, "{0} must have at least one row and one column"),
    "no columns": ((X[:, :0], Y[:, :0]), ValueError, "{0} must have at least one row and one column"),
}

PAIRS |= {
    "sparse": ((X.to_sparse(), Y), TypeError, "{0} must be a dense tensor, got a sparse_coo float32 tensor"),
    "mkldnn": ((X, Y.to_mkldnn()), TypeError, "{1} must be a dense tensor, got a _mkldnn float32 tensor"),
    "nested": ((torch.nested.nested_tensor([X, Y]), Y), TypeError, "{0} must be a dense tensor, got a nested float32"),
    "without values": ((META, META), ValueError, "{0} must have values, got a float32 tensor .* on meta"),
}

PAIR_FUNCTIONS = {
    ("x", "y"): lambda x, y: sk.DotCritic()(x, y),
    ("x", "y "): lambda x, y: sk.GaussianCritic()(x, y),
    ("x ", "y"): lambda x, y: sk.CosineCritic()(x, y),
    ("image_features", "text_features"): lambda x, y: sk.clip_loss(x, y, 1.0),
    ("image_features", "text_features "): lambda x, y: sk.siglip_loss(x, y, 1.0),
    ("query", "positive_key"): sk.info_nce_loss,
    ("query ", "negative_keys"): lambda x, y: sk.info_nce_loss(x, x if isinstance(x, torch.Tensor) else Y, y),
    ("z1", "z2"): sk.nt_xent_loss,
    ("z1 ", "z2"): sk.dcl_loss,
    ("x", "weight"): lambda x, y: sk.linear_cross_entropy(x, y, torch.zeros(6, dtype=torch.long)),
}


@pytest.mark.parametrize("bad", list(PAIRS))
@pytest.mark.parametrize("names", list(PAIR_FUNCTIONS), ids=lambda n: "-".join(n))
def test_pairs_of_features(names, bad):
    arguments, kind, message = PAIRS[bad]
    first, second = (name.strip() for name in names)
    if second == "negative_keys":
        # query is checked against positive_key first, by the same rules.
        first = "query"
        message = message.replace("{1}", "(positive_key|negative_keys)")
        if bad == "three dimensions":
            message = r"negative_keys must have shape \(6, K, 4\)"  # each query's own
    with pytest.raises(kind, match=message.format(first, second)):
        PAIR_FUNCTIONS[names](*arguments)


@pytest.mark.parametrize(
    "f",
    [
        lambda x, y: sk.clip_loss(x, y, 1.0),
        lambda x, y: sk.siglip_loss(x, y, 1.0),
        sk.info_nce_loss,
        sk.nt_xent_loss,
        sk.dcl_loss,
    ],
)
def test_losses_of_pairs_need_as_many_rows(f):
    with pytest.raises(
        ValueError, match=r"must have the same number of rows N, one pair a row, got \(6, 4\) and \(5, 4\)"
    ):
        f(X, Y[:5])


S = sk.DotCritic()(X, Y)
WIDE = sk.DotCritic()(X, torch.randn(9, 4))
TALL = sk.DotCritic()(X, Y[:3])

CALLS = {
    "scale of two": (lambda: sk.PairwiseScores(X, Y, scale=torch.ones(2)), ValueError, "scale must have one element"),
    "scale in words": (lambda: sk.DotCritic("big")(X, Y), TypeError, "scale must be a number"),
    "integer scale tensor": (
        lambda: sk.clip_loss(X, Y, torch.tensor(3)),
        TypeError,
        "logit_scale must have a floating",
    ),
    "logit_bias of two": (
        lambda: sk.siglip_loss(X, Y, 1.0, torch.ones(2)),
        ValueError,
        "logit_bias must have one element",
    ),
    "scale elsewhere": (
        lambda: sk.clip_loss(X, Y, torch.empty((), device="meta")),
        ValueError,
        "logit_scale must be on cpu",
    ),
    "row_bias of columns": (
        lambda: sk.PairwiseScores(X, Y[:5], row_bias=torch.ones(5)),
        ValueError,
        r"row_bias must have shape \(6,\), got a float32 tensor of shape \(5,\)",
    ),
    "integer col_bias": (
        lambda: sk.PairwiseScores(X, Y, col_bias=torch.ones(6).long()),
        TypeError,
        "col_bias must have a floating",
    ),
    "positives in floats": (
        lambda: sk.DotCritic()(X, Y, positives=torch.ones(6)),
        TypeError,
        "positives must have an integer dtype",
    ),
    "too few positives": (
        lambda: sk.DotCritic()(X, Y, positives=torch.ones(5).long()),
        ValueError,
        r"positives must have shape \(6,\)",
    ),
    "positives beyond": (
        lambda: sk.DotCritic()(X, Y, positives=torch.full((6,), 6)),
        ValueError,
        r"positives must be in \[0, 6\), got values from 6 to 6",
    ),
    "negative positives": (
        lambda: sk.DotCritic()(X, Y, positives=torch.full((6,), -1)),
        ValueError,
        "positives must be in",
    ),
    "fewer columns, joint": (
        lambda: TALL.joint,
        ValueError,
        "positives must be given where there are fewer columns than rows",
    ),
    "fewer columns, marginal": (lambda: TALL.marginal, ValueError, "positives must be given"),
    "fewer columns, bound": (lambda: sk.bounds.dv(TALL), ValueError, "positives must be given"),
    "row_ids": (
        lambda: S.exclude(torch.ones(5).long(), torch.ones(6).long()),
        ValueError,
        r"row_ids must have shape \(6,\)",
    ),
    "col_ids in floats": (
        lambda: S.exclude(torch.ones(6).long(), torch.ones(6)),
        TypeError,
        "col_ids must have an integer dtype",
    ),
    "row_ids of groups": (
        lambda: S.within(torch.ones(5).long(), torch.ones(6).long()),
        ValueError,
        r"row_ids must have shape \(6,\)",
    ),
    "col_ids of groups in floats": (
        lambda: S.within(torch.ones(6).long(), torch.ones(6)),
        TypeError,
        "col_ids must have an integer dtype",
    ),
    "clamp upside down": (lambda: S.clamp(1, -1), ValueError, "lo must be at most hi, got lo=1 and hi=-1"),
    "clamp with NaN": (lambda: S.clamp(float("nan"), 1), ValueError, "lo must be at most hi"),
    "clamp with a tensor": (lambda: S.clamp(torch.tensor(0.0), 1), TypeError, "lo must be a number"),
    "dim": (lambda: S.logsumexp(2), ValueError, r"dim must be 0, 1 or \(0, 1\), got 2"),
    "dim None": (lambda: S.sum(None), ValueError, "dim must be"),
    "fn": (
        lambda: S.sum(1, fn="relu"),
        ValueError,
        "fn must be one of identity, softplus, square, log1mexp; got 'relu'",
    ),
    "labels": (lambda: sk.supcon_loss(X, torch.ones(5).long()), ValueError, r"labels must have shape \(6,\)"),
    "labels in floats": (lambda: sk.supcon_loss(X, torch.ones(6)), TypeError, "labels must have an integer dtype"),
    "features": (lambda: sk.supcon_loss(LONG, torch.ones(6).long()), TypeError, "features must have dtype"),
    "target beyond": (
        lambda: sk.linear_cross_entropy(X, Y, torch.full((6,), 6)),
        ValueError,
        r"target must be in \[0, 6\) or equal to -100",
    ),
    "bias": (
        lambda: sk.linear_cross_entropy(X, Y, torch.ones(6).long(), torch.ones(4)),
        ValueError,
        r"bias must have shape \(6,\)",
    ),
    "class_weight": (
        lambda: sk.linear_cross_entropy(X, Y, torch.ones(6).long(), class_weight=torch.ones(4)),
        ValueError,
        r"class_weight must have shape \(6,\)",
    ),
    "integer class_weight": (
        lambda: sk.linear_cross_entropy(X, Y, torch.ones(6).long(), class_weight=torch.ones(6).long()),
        TypeError,
        "class_weight must have a floating dtype",
    ),
    "label_smoothing": (
        lambda: sk.linear_cross_entropy(X, Y, torch.ones(6).long(), label_smoothing=1.5),
        ValueError,
        r"label_smoothing must be in \[0, 1\], got 1.5",
    ),
    "label_smoothing of a Module": (
        lambda: sk.LinearCrossEntropyLoss(label_smoothing="much"),
        TypeError,
        "label_smoothing must be a number, got str 'much'",
    ),
    "temperature": (lambda: sk.nt_xent_loss(X, Y, 0.0), ValueError, "temperature must be greater than 0, got 0.0"),
    "temperature of a Module": (lambda: sk.DCLLoss(-1.0), ValueError, "temperature must be greater than 0"),
    "temperature of a critic": (
        lambda: sk.CosineCritic(float("nan")),
        ValueError,
        "temperature must be greater than 0",
    ),
    "bandwidth": (lambda: sk.GaussianCritic(0.0), ValueError, "bandwidth must be greater than 0"),
    "reduction": (
        lambda: sk.clip_loss(X, Y, 1.0, reduction="avg"),
        ValueError,
        "reduction must be one of mean, sum, none; got 'avg'",
    ),
    "reduction of a Module": (lambda: sk.ClipLoss("avg"), ValueError, "reduction must be one of"),
    "dcl of one": (lambda: sk.dcl_loss(X[:1], Y[:1]), ValueError, "must have at least two rows"),
    "symmetric with negatives": (
        lambda: sk.info_nce_loss(X, Y, X, symmetric=True),
        ValueError,
        "symmetric must be False",
    ),
    "tau": (lambda: sk.bounds.smile(S, tau=0.0), ValueError, "tau must be greater than 0"),
    "alpha": (lambda: sk.bounds.interpolated(S, 1.5, 0.0), ValueError, r"alpha must be in \[0, 1\], got 1.5"),
    "log_baseline": (lambda: sk.bounds.tuba(S, torch.ones(5)), ValueError, r"log_baseline must have shape \(6,\)"),
    "u": (lambda: sk.bounds.flo(S, torch.ones(6).long()), TypeError, "u must have a floating dtype"),
    "bilinear width": (lambda: sk.BilinearCritic(3, 4)(X, Y), ValueError, r"x must have shape \(N, 3\)"),
    "mlp width": (lambda: sk.MLPCritic(4, 5)(X, Y), ValueError, r"y must have shape \(N, 5\)"),
    "mlp dtype": (
        lambda: sk.MLPCritic(4, 4)(X.double(), Y.double()),
        TypeError,
        "x and y must have the dtype of the critic's",
    ),
    "mlp layers": (lambda: sk.MLPCritic(4, 4, layers=0), ValueError, "layers must be an integer of at least 1, got 0"),
    "pair_scores": (lambda: sk.MLPCritic(4, 4).pair_scores(X, Y[:3]), ValueError, "same number of rows"),
    "scale beyond float32": (
        lambda: sk.PairwiseScores(X, Y, scale=1e300),
        ValueError,
        "scale must be finite in float32",
    ),
    "scale of 400 digits": (
        lambda: sk.clip_loss(X, Y, 10**400),
        ValueError,
        "logit_scale must be a number that a float holds, got int of 1329 bits",
    ),
    "scale of 5000 digits": (
        lambda: sk.DotCritic(10**5000)(X, Y),
        ValueError,
        "scale must be .* got int of 16610 bits",
    ),
    "scale NaN": (lambda: sk.DotCritic(float("nan"))(X, Y), ValueError, "scale must be finite in float32, got nan"),
    "scale True": (lambda: sk.DotCritic(np.True_)(X, Y), TypeError, "scale must be a number or a tensor .* got bool"),
    "an array of scales": (
        lambda: sk.PairwiseScores(X, Y, scale=np.ones(10**6)),
        TypeError,
        r"scale must be a number or a tensor of one element, got a float64 array of shape \(1000000,\)$",
    ),
    "a sparse scale": (lambda: sk.clip_loss(X, Y, torch.ones(1).to_sparse()), TypeError, "logit_scale must be a dense"),
    "a temperature whose inverse is none": (
        lambda: sk.nt_xent_loss(X, Y, 1e-50),
        ValueError,
        "temperature must be at least 3e-39 for float32, got 1e-50",
    ),
    "the same of a critic": (lambda: sk.CosineCritic(1e-300)(X, Y), ValueError, "temperature must be at least"),
    "temperature in words": (lambda: sk.dcl_loss(X, Y, "warm"), TypeError, "temperature must be a number or a tensor"),
    "bandwidth without a square": (
        lambda: sk.GaussianCritic(1e-300),
        ValueError,
        "bandwidth must be between 1e-19 and 1e19",
    ),
    "learnable": (lambda: sk.CosineCritic(0.1, "yes"), TypeError, "learnable must be True or False, got str 'yes'"),
    "tau as a tensor": (
        lambda: sk.bounds.smile(S, tau=torch.ones(())),
        TypeError,
        "tau must be a number, got a float32",
    ),
    "tau in words": (lambda: sk.bounds.smile(S, tau="a"), TypeError, "tau must be a number, got str 'a'"),
    "tau of readouts": (lambda: sk.bounds.readouts(S, tau="a"), TypeError, "tau must be a number, got str 'a'"),
    "tau beyond float32": (lambda: sk.bounds.smile(S, tau=1e300), ValueError, "tau must be finite in float32"),
    "clamp beyond float32": (lambda: S.clamp(0, 1e300), ValueError, "hi must be finite in float32, got 1e[+]?300"),
    "log_baseline beyond float32": (
        lambda: sk.bounds.tuba(S, 1e300),
        ValueError,
        "log_baseline must be finite in float32",
    ),
    "log_running_mean": (
        lambda: sk.bounds.mine(S, torch.zeros(6)),
        ValueError,
        "log_running_mean must have one element",
    ),
    "alpha in words": (lambda: sk.bounds.interpolated(S, "a", 0.0), TypeError, "alpha must be a number, got str 'a'"),
    "ignore_index None": (
        lambda: sk.linear_cross_entropy(X, Y, torch.ones(6).long(), ignore_index=None),
        TypeError,
        "ignore_index must be an integer, got NoneType None",
    ),
    "ignore_index of a Module": (lambda: sk.LinearCrossEntropyLoss(2**70), ValueError, "ignore_index must .* 64 bits"),
    "dim in words": (lambda: S.logsumexp((0, "a")), ValueError, r"dim must be 0, 1 or \(0, 1\), got \(0, 'a'\)"),
    "dim twice": (lambda: S.count((0, 0)), ValueError, r"dim must be 0, 1 or \(0, 1\), got \(0, 0\)"),
    "dim True": (lambda: S.sum(True), ValueError, "dim must be 0, 1"),
    "backend": (lambda: S.logsumexp(1, backend=[]), ValueError, r"backend must name one of cuda, triton, .*; got \[\]"),
    "use_backend": (lambda: sk.use_backend([]).__enter__(), ValueError, r"use_backend must name one of .*; got \[\]"),
    "a long list for a reduction": (
        lambda: sk.ClipLoss(["mean"] * 999),
        ValueError,
        "reduction must be .* got .'mean', .* ...]$",
    ),
    "symmetric": (lambda: sk.bounds.infonce(S, X), TypeError, "symmetric must be True or False"),
    "symmetric loss": (lambda: sk.info_nce_loss(X, Y, symmetric=1), TypeError, "symmetric must be True or False"),
    "keep_joint": (lambda: S.exclude(X[:, 0].long(), X[:, 0].long(), "no"), TypeError, "keep_joint must be True or"),
    "labels beyond": (
        lambda: sk.bounds.label_entropy(torch.arange(6), 5),
        ValueError,
        r"target must be in \[0, 5\) or equal to -100, got values from 0 to 5",
    ),
    "labels in a list": (lambda: sk.bounds.label_entropy([0, 1], 5), TypeError, "target must be a tensor of shape"),
    "classes": (
        lambda: sk.bounds.label_entropy(torch.arange(6), 0),
        ValueError,
        "classes must be an integer of at least 1",
    ),
    "dtype": (
        lambda: sk.bounds.label_entropy(torch.arange(6), 6, dtype=int),
        TypeError,
        "dtype must be one of torch.float64",
    ),
    "probabilities": (
        lambda: sk.bounds.entropy([0.5, 0.5]),
        TypeError,
        r"probabilities must be a tensor of shape \(C,\)",
    ),
    "bilinear widths": (lambda: sk.BilinearCritic(4, -1), ValueError, "dim_y must be an integer of at least 1, got -1"),
    "samples": (lambda: sk.estimate(META, META), ValueError, "x must be an array or a dense tensor with values"),
    "heads": (
        lambda: sk.MultiTaskSimMIM(torch.nn.Linear(4, 3), [torch.nn.Linear(3, 2)]),
        TypeError,
        "heads must map tasks to modules, got list",
    ),
    "source": (
        lambda: sk.transfer("a", torch.nn.Linear(4, 3), 1),
        TypeError,
        "source must be a torch.nn.Module, got str",
    ),
    "critic": (lambda: sk.MutualInformation("dot"), TypeError, "critic must be a module or a function, got str 'dot'"),
    "a critic that returns a matrix": (
        lambda: sk.MutualInformation(lambda x, y: x @ y.T)(X, Y),
        TypeError,
        "critic must return PairwiseScores, got a float32 tensor of shape",
    ),
    "the same of SimMIM": (
        lambda: sk.SimMIM(torch.nn.Linear(4, 3), lambda x, y: x @ y.T)(X, Y),
        TypeError,
        "critic must return PairwiseScores",
    ),
    "encoder": (lambda: sk.SimMIM(None), TypeError, "encoder must be a module or a function, got NoneType None"),
    "bound": (
        lambda: sk.MutualInformation(sk.DotCritic(), ["dv"]),
        ValueError,
        r"bound must be one of .* got \['dv'\]",
    ),
    "a bound that returns rows": (
        lambda: sk.MutualInformation(sk.DotCritic(), lambda scores: scores.joint)(X, Y),
        TypeError,
        r"bound must return a tensor without dimensions, got a float32 tensor of shape \(6,\)",
    ),
    "params of one's own bound": (
        lambda: sk.MutualInformation(sk.DotCritic(), lambda scores, tau: scores.joint.mean(), width=1.0),
        ValueError,
        "params of bound '<lambda>' must be: tau; got width",
    ),
    "a bound without scores": (
        lambda: sk.MutualInformation(sk.DotCritic(), lambda: 0),
        TypeError,
        "bound must take scores",
    ),
    "keep_joint both ways": (
        lambda: S.exclude(torch.arange(6), torch.arange(6)).exclude(torch.arange(6), torch.arange(6), keep_joint=True),
        ValueError,
        "keep_joint must be the same",
    ),
    "keep_joint of groups and not of exclusions": (
        lambda: S.exclude(torch.arange(6), torch.arange(6)).within(torch.arange(6), torch.arange(6), keep_joint=True),
        ValueError,
        "keep_joint must be the same",
    ),
    "seven exclusions within groups": (
        lambda: (
            [s := S.within(torch.arange(6), torch.arange(6))]
            + [s := s.exclude(torch.arange(6), torch.arange(6)) for _ in range(7)]
        ),
        ValueError,
        "exclude can be applied 6 times",
    ),
    "seven exclusions": (
        lambda: [s := S] + [s := s.exclude(torch.arange(6), torch.arange(6)) for _ in range(7)],
        ValueError,
        "exclude can be applied 6 times",
    ),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_call(name):
    call, kind, message = CALLS[name]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not re.search(r"object at 0x", str(caught.value))


BOUNDS = {
    "mine": (torch.zeros(()),),
    "tuba": (0.0,),
    "interpolated": (0.5, 0.0),
    "flo": (0.0,),
    **dict.fromkeys(("infonce", "dv", "nwj", "js", "js_divergence", "smile", "leave_one_out", "club"), ()),
    **dict.fromkeys(("barber_agakov", "readouts"), ()),
}


@pytest.mark.parametrize("name", list(BOUNDS))
def test_bounds_say_what_to_make_of_a_matrix(name):
    message = r"scores must be PairwiseScores, as a critic makes them .* got a float32 tensor of shape \(6, 6\) on cpu$"
    with pytest.raises(TypeError, match=message):
        getattr(sk.bounds, name)(X @ Y.T, *BOUNDS[name])


@pytest.mark.parametrize(
    "half", [np.float32(0.5), np.float64(0.5), np.array(0.5), np.array(0.5, np.float16), Fraction(1, 2)], ids=repr
)
def test_every_real_number_is_a_number(half):
    label = torch.arange(6)
    for f in (
        lambda v: sk.clip_loss(X, Y, v),
        lambda v: sk.siglip_loss(X, Y, 1.0, v),
        lambda v: sk.info_nce_loss(X, Y, temperature=v),
        lambda v: sk.NTXentLoss(v)(X, Y),
        lambda v: sk.linear_cross_entropy(X, Y, label, label_smoothing=v),
        lambda v: sk.bounds.smile(S, v),
        lambda v: sk.bounds.interpolated(S, v, v),
        lambda v: sk.bounds.flo(S, v),
        lambda v: S.clamp(-v, v).logsumexp(1),
        lambda v: sk.CosineCritic(v)(X, Y).logsumexp(0),
        lambda v: sk.GaussianCritic(v, learnable=True)(X, Y).logsumexp(0),
        lambda v: sk.MutualInformation(sk.DotCritic(v), "mine", decay=v)(X, Y),
    ):
        assert torch.equal(f(half), f(0.5))
    two, target = np.int64(2), torch.full((6,), 2)
    assert sk.linear_cross_entropy(X, Y, target, ignore_index=two, reduction="sum") == 0
    assert torch.equal(S.logsumexp(np.int64(1)), S.logsumexp(1))


def test_fewer_columns_than_rows_are_fine_where_no_joint_pair_is_asked_for():
    assert torch.allclose(TALL.logsumexp(1), (X @ Y[:3].T).logsumexp(1), atol=1e-5)
    positives = torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.isfinite(sk.bounds.infonce(sk.DotCritic()(X, Y[:3], positives)))
