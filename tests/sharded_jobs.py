"""What a rank does in the tests of tests/test_distributed.py, beside the losses of sharded_cases.py."""

import copy
import os
from collections import Counter
from collections.abc import Callable

import pytest
import sharded_cases as cases
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import simmim_kernels as sk
from simmim_kernels.backends import BACKENDS
from simmim_kernels.drop_in._processes import SeveralProcesses, with_whole_gradient
from simmim_kernels.operator import collectives, global_batch, ring

WIDTH = 6


def features(rank: int = 0, n: int = 5, d: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(rank)
    made = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
    return [F.normalize(t, dim=1).to(dtype).requires_grad_() for t in made]


# Configurations of scores, for hypothesis.


def configured(options: dict, t: dict[str, Tensor], group) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Statistics of a rank's own rows and columns, and a scalar of all, of scores with options."""
    biases = {"row_bias": t["row_bias"], "col_bias": t["columns/col_bias"]} if options["biases"] else {}
    s = sk.PairwiseScores(t["x"], t["columns/y"], scale=t["all/scale"], positives=t["positives"], group=group, **biases)
    if options["clamp"]:
        s = s.clamp(-0.4, 0.6)
    keep = options["joint"] == "kept"
    for k in range(options["ids"]):
        s = s.exclude(t["row_ids"] + k, t["columns/col_ids"], keep_joint=keep)
    for k in range(options["groups"]):
        s = s.within(t["row_ids"] % (k + 2), t["columns/col_ids"] % (k + 2), keep_joint=keep)
    if options["guide"]:
        s = s.exclude_above(t["guide_x"], t["columns/guide_y"], t["limit"], keep_joint=keep)
    if options["joint"] == "left_out":
        s = s.marginal
    rows, columns = s.logsumexps()
    of_rows = [rows, s.sum(1, fn="softplus"), s.joint, s.count(1).double()]
    if options["joint"] != "left_out":
        of_rows += s.cross_entropies()
    of_columns = [columns, s.sum(0, fn="square"), s.count(0).double()]
    if options["joint"] != "left_out":
        signed = s._with_joint_negated() if not keep else s
        total = signed.sum((0, 1), fn="softplus") / 10
    else:
        total = s.sum((0, 1), fn="softplus") / 10
    return of_rows, of_columns, total + s.mean(s.joint) + s.logmeanexp((0, 1)).clamp(min=-100)


def configured_tensors(n: int, m: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    return {
        "x": normal(n, 3),
        "row_bias": normal(n),
        "positives": torch.randint(0, m, (n,), generator=g),
        "row_ids": torch.randint(0, 6, (n,), generator=g),
        "columns/y": normal(m, 3),
        "columns/col_bias": normal(m),
        "columns/col_ids": torch.randint(0, 6, (m,), generator=g),
        "guide_x": normal(n, 2).detach(),
        "columns/guide_y": normal(m, 2).detach(),
        "limit": normal(n).detach(),
        "all/scale": torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
    }


def weighted(values: list[Tensor], first: int) -> Tensor:
    """A sum with another weight for each of all ranks' rows."""
    found = values[0].new_zeros(())
    for k, value in enumerate(values):
        weight = torch.cos(torch.arange(len(value), dtype=value.dtype) + first + 3 * k)
        found = found + (value.clamp(min=-100) * weight).sum()
    return found


def configuration(group, options: dict, rows: tuple, columns: tuple, seed: int, schedule: str, backend: str) -> dict:
    world, rank = len(rows), 0 if group is None else group.rank()
    t = configured_tensors(sum(rows), sum(columns), seed)
    first_row, first_column = sum(rows[:rank]), sum(columns[:rank])
    if group is not None:
        cut = {"rows": slice(first_row, first_row + rows[rank])}
        cut["columns"] = slice(first_column, first_column + columns[rank])
        for name, tensor in t.items():
            kind = name.rpartition("/")[0] or "rows"
            part = tensor if kind == "all" else tensor[cut[kind]]
            t[name] = part.detach().clone().requires_grad_(tensor.requires_grad)
    batch = None if group is None else sk.GlobalBatch(group, schedule)
    with sk.use_backend(backend):
        of_rows, of_columns, total = configured(options, t, batch)
        # Every rank's total is the one total, W times over.
        whole = (
            weighted(of_rows, first_row) + weighted(of_columns, first_column) + total / (1 if batch is None else world)
        )
        leaves = {name: tensor for name, tensor in t.items() if tensor.requires_grad}
        found = torch.autograd.grad(whole, list(leaves.values()), allow_unused=True)
    gradients = {name: g for name, g in zip(leaves, found, strict=True) if g is not None}
    return {
        "rows": [v.detach() for v in of_rows],
        "columns": [v.detach() for v in of_columns],
        "total": total.detach(),
        "gradients": gradients,
    }


def readouts(group, schedule: str) -> dict[str, Tensor]:
    t = cases.tensors() if group is None else cases.part(cases.tensors(), group.rank(), group.size())
    batch = None if group is None else sk.GlobalBatch(group, schedule)
    return sk.MutualInformation(sk.DotCritic(0.4), group=batch).readouts(t["x"], t["y"])


# Counters.


def counted_pairs(group, schedule: str, name: str, n: int) -> float:
    """Products of all pairs that this rank makes for a loss, of a matrix of its rows and all columns."""
    counts: Counter = Counter()
    module = BACKENDS["tiled"]
    before = module.forward, module.backward, module.value_and_gradients

    def forward(problem):
        counts["products"] += problem.shape[0] * problem.shape[1]
        return before[0](problem)

    def backward(problem, *rest):
        counts["products"] += 3 * problem.shape[0] * problem.shape[1]
        return before[1](problem, *rest)

    def value_and_gradients(problem, needs):
        counts["products"] += 3 * problem.shape[0] * problem.shape[1]
        return before[2](problem, needs)

    module.forward, module.backward, module.value_and_gradients = forward, backward, value_and_gradients
    try:
        with sk.use_backend("tiled"):
            loss = getattr(sk, name)(*features(group.rank(), n), 2.0, group=sk.GlobalBatch(group, schedule))
        loss.backward()
    finally:
        module.forward, module.backward, module.value_and_gradients = before
    return counts["products"] / (n * n * group.size())


class Traffic:
    """Bytes that this rank sends, by what sends them: a collective by its ring, or a neighbour."""

    def __init__(self, group):
        self.sent: Counter = Counter()
        self._size = group.size()

    def __enter__(self) -> Counter:
        self._ops, self._exchange = collectives.OPS, ring.dist.batch_isend_irecv
        collectives.OPS = global_batch.OPS = self
        ring.dist.batch_isend_irecv = self._neighbours
        return self.sent

    def __exit__(self, *_) -> None:
        collectives.OPS = global_batch.OPS = self._ops
        ring.dist.batch_isend_irecv = self._exchange

    def __getattr__(self, name: str):
        op = getattr(self._ops, name)

        def counted(x: Tensor, *rest):
            share = {"all_gather_into_tensor": self._size - 1, "wait_tensor": 0, "all_reduce": 2}.get(name)
            if share is None:
                share = (self._size - 1) / self._size
            self.sent[name] += share * x.numel() * x.element_size()
            return op(x, *rest)

        return counted

    def _neighbours(self, ways):
        for way in ways:
            if way.op is torch.distributed.isend:
                self.sent["neighbour"] += way.tensor.numel() * way.tensor.element_size()
        return self._exchange(ways)


def traffic(group, schedule: str, n: int, d: int, dtype: torch.dtype) -> dict[str, float]:
    with Traffic(group) as sent:
        sk.clip_loss(*features(group.rank(), n, d, dtype), 2.0, group=sk.GlobalBatch(group, schedule)).backward()
    return {name: count for name, count in sent.items() if count}


class _Largest(TorchDispatchMode):
    """Remembers the elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        made = [t.numel() for t in tree_leaves(found) if isinstance(t, Tensor)]
        self.elements = max([self.elements, *made])
        return found


def largest_tensor(group, schedule: str, n: int, d: int, guided: bool = False) -> int:
    x, y = features(group.rank(), n, d)
    batch = sk.GlobalBatch(group, schedule)
    with _Largest() as largest, sk.use_backend("reference"):
        if guided:
            scores = sk.PairwiseScores(x, y, group=batch).exclude_above(x, y, x[:, 0], keep_joint=True)
            sum(scores.cross_entropies()).sum().backward()
        else:
            sk.clip_loss(x, y, 2.0, group=batch).backward()
    return largest.elements


def told(group, fixed: bool) -> list[float]:
    """Bytes that shapes take, of three calls."""
    batch, found = sk.GlobalBatch(group, fixed_shapes=fixed), []
    for _ in range(3):
        with Traffic(group) as sent:
            sk.PairwiseScores(*features(group.rank()), group=batch)
        y = 5 * 4 * 8 * (group.size() - 1)
        found.append(sent["all_gather_into_tensor"] - y)
    return found


# What goes wrong.


def mismatched(group, what: str) -> None:
    odd = group.rank() == 1
    x, y = features(group.rank(), d=5 if odd and what == "d" else 4)
    schedule = "ring" if odd and what == "schedule" else "gather"
    batch = sk.GlobalBatch(group, schedule, averaging=not (odd and what == "averaging"))
    if odd and what == "dtype":
        x, y = x.float(), y.float()
    if odd and what == "requires_grad":
        y = y.detach()
    bias = torch.zeros(5, dtype=torch.float64) if odd and what == "col_bias" else None
    if odd and what == "kind of scores":
        sk.MLPCritic(4, 4, hidden=4).double()(x, y, group=batch)
    scores = sk.PairwiseScores(x, y, col_bias=bias, group=batch)
    if what == "d of the guide":
        width = 3 if odd else 2
        scores.exclude_above(x[:, :width], y[:, :width], x[:, 0])


def without_rows(group) -> None:
    sk.clip_loss(torch.zeros(0, 3), torch.zeros(0, 3), 1.0, group=group)


def not_a_number(group, schedule: str) -> list[bool]:
    """Of the loss, and of the gradients by the features of both sides, where rank 1 has a NaN."""
    x, y = features(group.rank())
    if group.rank() == 1:
        with torch.no_grad():
            x[2, 1] = torch.nan
    loss = sk.clip_loss(x, y, 2.0, group=sk.GlobalBatch(group, schedule))
    loss.backward()
    return [bool(t.isnan().any()) for t in (loss, x.grad, y.grad)]


def dies(group) -> None:
    if group.rank() == 1:
        os._exit(3)
    sk.clip_loss(*features(group.rank()), 2.0, group=group)


def wrong_groups(group) -> list[str]:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Replicate

    mesh = DeviceMesh.from_group(group, "cpu")
    x, y = features(group.rank())
    whole = DTensor.from_local(x.detach(), mesh, [Replicate()])
    square = torch.distributed.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    attempts = [
        lambda: sk.clip_loss(x, y, 1.0, group="world"),
        lambda: sk.clip_loss(x, y, 1.0, group=square),
        lambda: sk.GlobalBatch(group, "star"),
        lambda: sk.clip_loss(whole, y, 1.0, group=group),
        lambda: sk.clip_loss(x, y, 1.0, group=torch.distributed.GroupMember.NON_GROUP_MEMBER),
    ]
    of_mesh = sk.clip_loss(x, y, 1.0, group=mesh)
    assert torch.equal(of_mesh, copy.deepcopy(sk.ClipLoss(group=group))(x, y, 1.0))
    of_half = sk.clip_loss(x, y, 1.0, group=square["b"])
    assert torch.equal(of_half, sk.clip_loss(x, y, 1.0, group=square["b"].get_group()))
    assert of_half != of_mesh
    return [_message(attempt) for attempt in attempts]


def _message(attempt: Callable[[], object]) -> str:
    with pytest.raises((TypeError, ValueError)) as raised:
        attempt()
    return str(raised.value)


# Training.


class Towers(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__()
        torch.manual_seed(7)
        self.image, self.text = (nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor([0.7]))
        self.to(dtype)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = [F.normalize(tower(t), dim=1) for tower, t in ((self.image, image), (self.text, text))]
        return *found, self.log_scale.exp()


def batches(world: int, rank: int | None, steps: int = 2) -> list[list[Tensor]]:
    """Of each step the images and texts of a rank, or of all."""
    g, found = torch.Generator().manual_seed(1), []
    rows = cases.ROWS[world]
    for _ in range(steps):
        both = [torch.randn(sum(rows), WIDTH, generator=g, dtype=torch.float64) for _ in range(2)]
        own = slice(None) if rank is None else slice(sum(rows[:rank]), sum(rows[: rank + 1]))
        found.append([t[own] for t in both])
    return found


def trained(group, wrapped: str, how: str = "plain", schedule: str = "gather") -> dict[str, Tensor]:
    """Gradients of towers by a loss of all ranks' rows: one process, DDP or FSDP2, in one of several ways."""
    world = int(wrapped.partition(" ")[2]) if group is None else group.size()
    dtype = torch.float32 if how == "autocast" else torch.float64
    model = Towers(dtype)
    if wrapped == "ddp":
        model = nn.parallel.DistributedDataParallel(model, process_group=group)
    elif wrapped == "fsdp":
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        mesh = DeviceMesh.from_group(group, "cpu")
        for part in (model.image, model.text, model):
            fully_shard(part, mesh=mesh)
    batch = None if group is None else sk.GlobalBatch(group, schedule)

    def loss(*views: Tensor) -> Tensor:
        return sk.clip_loss(*views, group=batch)

    steps = batches(world, None if group is None else group.rank(), 2 if how == "accumulation" else 1)
    for step, (image, text) in enumerate(steps):
        last = step == len(steps) - 1
        if wrapped == "fsdp":
            model.set_requires_gradient_sync(last)
        with model.no_sync() if wrapped == "ddp" and not last else torch.enable_grad():
            if how == "checkpointing":
                value = checkpoint(lambda a, b: loss(*model(a, b)), image, text, use_reentrant=False)
            else:
                with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
                    value = loss(*model(image.to(dtype), text.to(dtype)))
            value.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.full_tensor() if wrapped == "fsdp" else parameter.grad
        gradients[name.removeprefix("module.")] = gradient.double()
    return {"loss": value.detach().double(), **gradients}


def compiled(group, name: str, schedule: str, whole: bool) -> tuple[float, float, int]:
    """Errors of value and gradients against the eager ones, and how often the graph broke."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    batch = sk.GlobalBatch(group, schedule, fixed_shapes=whole)
    t = cases.part(cases.tensors(), group.rank(), group.size())
    value, truth = cases.value_and_gradients(name, t, batch)
    function = torch.compile(lambda u: cases.LOSSES[name](u, batch), fullgraph=whole, backend="aot_eager")
    got = function(cases.bare(t))
    found = torch.autograd.grad(got, [t[key] for key in truth])
    errors = [float((g - truth[key]).abs().max()) for key, g in zip(truth, found, strict=True) if g.numel()]
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    return float((got.detach() - value).abs()), max(errors), breaks


def twice_differentiated(group, schedule: str) -> Tensor:
    """The gradient of a gradient's square, of a rank's own x."""
    t = cases.part(cases.tensors(), group.rank(), group.size()) if group is not None else cases.tensors()
    batch = None if group is None else sk.GlobalBatch(group, schedule, averaging=False)
    loss = sk.clip_loss(t["x"], t["y"], 1.3, group=batch)
    (gradient,) = torch.autograd.grad(loss, t["x"], create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), t["x"])[0]


# What drop-ins take from several processes, which needs none of their libraries.


def of_own_anchors(group) -> tuple[Tensor, ...]:
    loss, (x, y) = SeveralProcesses(), features(group.rank())
    loss.original_gradients = True
    value = loss._of_group(sk.nt_xent_loss, x, y, 0.3, group=group)
    return value.detach(), *torch.autograd.grad(value, (x, y))


def gradient_of_scale(group, averaging: bool) -> Tensor:
    batch, scale = sk.GlobalBatch(group, averaging=averaging), torch.tensor(1.7, dtype=torch.float64)
    scale.requires_grad_()
    loss = sk.clip_loss(*features(group.rank()), with_whole_gradient(scale, batch), group=batch)
    return torch.autograd.grad(loss, scale)[0]


def demo_curve(group, steps: int) -> list[float]:
    from simmim_kernels.commands.demo import digits

    torch.manual_seed(0)
    images = torch.rand(40, digits.SIDE**2, dtype=torch.float64).float()
    return list(digits.train(digits.build_model(group), images, steps, 31, group))
