"""cached_step against the same step on the whole batch."""

import contextlib

import pytest
import torch
from torch import nn

import simmim_kernels as sk
from simmim_kernels.comparison.measure import extra_bytes

N = 23


def tower(width, dropout=0.0):
    return nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 5)).double()


def gradients(*modules):
    found = [p.grad.clone() for module in modules for p in module.parameters()]
    for module in modules:
        module.zero_grad()
    return found


@pytest.fixture
def step():
    torch.manual_seed(0)
    towers, criterion = [tower(7), tower(4)], nn.Module()
    criterion.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    inputs = [torch.randn(N, 7).double(), torch.randn(N, 4).double()]
    return towers, inputs, criterion, lambda x, y: sk.clip_loss(x, y, criterion.scale)


@pytest.mark.parametrize("size", [1, 5, 22, 23, 100])
def test_two_towers(step, size):
    towers, inputs, criterion, loss = step
    want = loss(*(t(x) for t, x in zip(towers, inputs, strict=True)))
    want.backward()
    truth = gradients(*towers, criterion)
    for _ in range(2):  # they add up
        value = sk.cached_step(towers, inputs, loss, size)
    assert not value.requires_grad
    torch.testing.assert_close(value, want.detach(), rtol=1e-12, atol=0)
    for found, true in zip(gradients(*towers, criterion), truth, strict=True):
        torch.testing.assert_close(found, 2 * true, rtol=1e-10, atol=1e-12)


def test_one_tower_of_mappings():
    torch.manual_seed(0)
    model = tower(7)
    views = [{"x": torch.randn(N, 7).double(), "shift": 0.5 * k} for k in range(2)]

    def encode(batch):
        return model(batch["x"] + batch["shift"])

    sk.nt_xent_loss(*(encode(view) for view in views)).backward()
    truth = gradients(model)
    sk.cached_step(encode, views, sk.nt_xent_loss, 4)
    torch.testing.assert_close(gradients(model), truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_dropout_and_autocast(autocast):
    """The same as of micro-batches that are all kept; and the random numbers after it are the same."""
    model, x = tower(7, dropout=0.4).float(), torch.randn(N, 7)
    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()

    def loss(z, y):
        return sk.info_nce_loss(z, y, temperature=0.5)

    torch.manual_seed(1)
    with context:
        want = loss(*(torch.cat([model(rows) for rows in x.split(6)]) for _ in range(2)))
        want.backward()
    after, truth = torch.rand(3), gradients(model)
    torch.manual_seed(1)
    with context:
        value = sk.cached_step(model, [x, x], loss, 6)
    assert torch.equal(torch.rand(3), after)
    torch.testing.assert_close(value, want.detach(), rtol=1e-6, atol=0)
    # Under autocast sums over micro-batches are rounded in another order.
    tolerance = 2e-2 if autocast else 1e-5
    for found, true in zip(gradients(model), truth, strict=True):
        assert (found - true).norm() <= tolerance * true.norm()


@pytest.mark.parametrize("outer", [False, True])
def test_ddp_exchanges_gradients_once(tmp_path, outer):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model, views = tower(7), [torch.randn(N, 7).double() for _ in range(2)]
        sk.nt_xent_loss(*map(model, views)).backward()
        truth = gradients(model)
        wrapped, exchanges = nn.parallel.DistributedDataParallel(model), []

        def hook(_, bucket):
            exchanges.append(bucket.index())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        wrapped.register_comm_hook(None, hook)
        with wrapped.no_sync() if outer else contextlib.nullcontext():
            sk.cached_step(wrapped, views, sk.nt_xent_loss, 5)
        assert len(exchanges) == (0 if outer else 1)
        torch.testing.assert_close(gradients(model), truth, rtol=1e-10, atol=1e-12)
    finally:
        torch.distributed.destroy_process_group()


def test_memory_is_that_of_a_micro_batch():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(8)))
    x = torch.randn(4096, 64)

    def whole():
        sk.nt_xent_loss(model(x), model(x + 1)).backward()

    def cached():
        sk.cached_step(model, [x, x + 1], sk.nt_xent_loss, 256)

    assert extra_bytes(cached) < extra_bytes(whole) / 2


def test_wrong_arguments_are_named(step):
    towers, inputs, _, loss = step
    for message, arguments in {
        "encoders must be one, or one for each input, got 2 for 1": (towers, inputs[:1], loss, 4),
        r"inputs\[1\] must have tensors of one number of rows, got \[3, 23\]": (
            towers,
            [inputs[0], (inputs[1], inputs[1][:3])],
            loss,
            4,
        ),
        "micro_batch_size must be an integer of at least 1": (towers, inputs, loss, 0),
        "loss must use the embeddings of every input": (towers, inputs, lambda x, y: x.sum(), 4),
        "BatchNorm1d '1' in encoder 0": (nn.Sequential(tower(7), nn.BatchNorm1d(5)), inputs[:1], loss, 4),
    }.items():
        with pytest.raises(ValueError, match=message):
            sk.cached_step(*arguments)
    with pytest.raises(TypeError, match=r"loss must return a tensor of shape \(\)"):
        sk.cached_step(towers, inputs, lambda x, y: x, 4)
    with pytest.raises(TypeError, match="encoders must return a tensor"):
        sk.cached_step(lambda x: (x,), inputs, loss, 4)
