"""Cached-gradient training: a large batch with the activations of a small one (Gao et al. 2021, arXiv:2101.06983)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from .problem import validation

Encoder = Callable[[Any], Tensor]


def cached_step(
    encoders: Encoder | Sequence[Encoder], inputs: Sequence[Any], loss: Callable[..., Tensor], micro_batch_size: int
) -> Tensor:
    """Forward and backward of loss(encoder(input), ...) over whole batches, with activations of some rows; () the loss.

        value = sk.cached_step([image_tower, text_tower], [images, texts], lambda x, y: sk.clip_loss(x, y, scale), 64)
        optimizer.step()

    Each of `inputs` is a tensor (N, ...), or a mapping, list or tuple of such; `encoders` are one for each, or one for
    all, and return embeddings (N, d). `loss` is of all rows, to a scalar. Gradients add to the `.grad` of parameters of
    encoders and loss, as those of a backward would, and are the whole batch's to rounding; the value is detached.

    The encoders run twice: without gradient on `micro_batch_size` rows at a time, then again with gradient, each part
    with the random state it had, so that dropout repeats itself; random numbers go on as if they had run once. Call it
    inside autocast where the step is, and with a GradScaler give loss=lambda *z: scaler.scale(...). Of an encoder in
    DistributedDataParallel the last part alone takes part in the exchange of gradients, and inside `no_sync` none.

    Raises ValueError for inputs whose tensors differ in their rows, for another number of encoders than inputs, and for
    an encoder with batch normalisation in training mode, whose statistics would be those of some rows. Raises TypeError
    for embeddings or a loss that are no tensor.
    """
    size = validation.integer(micro_batch_size, "micro_batch_size", least=1)
    inputs = list(inputs)
    towers: list[Any] = list(encoders) if isinstance(encoders, (Sequence, nn.ModuleList)) else [encoders] * len(inputs)
    if len(towers) != len(inputs) or not inputs:
        raise ValueError(f"encoders must be one, or one for each input, got {len(towers)} for {len(inputs)} inputs")
    parts = [_micro_batches(batch, size, f"inputs[{k}]") for k, batch in enumerate(inputs)]
    with torch.enable_grad():
        if all(len(part) == 1 for part in parts):
            embeddings = [_embedded(tower, part[0]) for tower, part in zip(towers, parts, strict=True)]
            return _backward(loss, embeddings)
        _refuse_batch_norm(towers)
        states = [[_RandomState(rows) for rows in part] for part in parts]
        embeddings = []
        for tower, part, of_part in zip(towers, parts, states, strict=True):
            with torch.no_grad():
                found = [_first(tower, rows, state) for rows, state in zip(part, of_part, strict=True)]
            embeddings.append(torch.cat(found).requires_grad_())
        # Autocast would give the weights that it cast without a gradient to the passes that want one.
        torch.clear_autocast_cache()
        value = _backward(loss, embeddings)
        left = {id(tower): sum(len(p) for t, p in zip(towers, parts, strict=True) if t is tower) for tower in towers}
        for tower, part, of_part, whole in zip(towers, parts, states, embeddings, strict=True):
            if whole.grad is None:
                raise ValueError("loss must use the embeddings of every input, got one that has no gradient")
            for rows, state, gradient in zip(part, of_part, whole.grad.split(size), strict=True):
                left[id(tower)] -= 1
                with _unsynchronised(tower) if left[id(tower)] else nullcontext(), state:
                    again = _embedded(tower, rows)
                    if again.requires_grad:
                        again.backward(gradient)
    return value


def _micro_batches(batch: Any, size: int, name: str) -> list[Any]:
    """The batch in parts of `size` rows; what in it is no tensor goes to all."""
    leaves, spec = tree_flatten(dict(batch) if isinstance(batch, Mapping) else batch)
    lengths = {len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"{name} must have tensors of one number of rows, got {sorted(lengths) or 'none'}")
    columns = [leaf.split(size) if isinstance(leaf, Tensor) and leaf.dim() > 0 else None for leaf in leaves]
    count = -(-lengths.pop() // size)
    return [
        tree_unflatten([leaf if c is None else c[k] for leaf, c in zip(leaves, columns, strict=True)], spec)
        for k in range(count)
    ]


class _RandomState(AbstractContextManager):
    """The state of the random numbers at one time, on the CPU and on the devices of some tensors, to come back to."""

    def __init__(self, rows: Any):
        self._tensors = [leaf for leaf in tree_flatten(rows)[0] if isinstance(leaf, Tensor)]

    def save(self) -> None:
        self._cpu = torch.get_rng_state()
        self._devices, self._states = get_device_states(*self._tensors)

    def __enter__(self) -> None:
        self._fork = torch.random.fork_rng(devices=self._devices)
        self._fork.__enter__()
        torch.set_rng_state(self._cpu)
        set_device_states(self._devices, self._states)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


def _first(tower: Encoder, rows: Any, state: _RandomState) -> Tensor:
    state.save()
    return _embedded(tower, rows)


def _embedded(tower: Encoder, rows: Any) -> Tensor:
    found = tower(rows)
    if not isinstance(found, Tensor):
        raise TypeError(f"encoders must return a tensor, got {validation.describe(found)}")
    return found


def _backward(loss: Callable[..., Tensor], embeddings: Sequence[Tensor]) -> Tensor:
    value = loss(*embeddings)
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise TypeError(f"loss must return a tensor of shape (), got {validation.describe(value)}")
    value.backward()
    return value.detach()


def _unsynchronised(tower: Any) -> AbstractContextManager:
    return tower.no_sync() if hasattr(tower, "no_sync") else nullcontext()


def _refuse_batch_norm(towers: Sequence[Any]) -> None:
    for k, tower in enumerate(towers):
        for name, module in tower.named_modules() if isinstance(tower, nn.Module) else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                raise ValueError(
                    f"encoders must not normalise by the batch in training mode, got {type(module).__name__} "
                    f"{name!r} in encoder {k}: its statistics would be a micro-batch's; eval() it, or use GroupNorm"
                )
