"""The second reading of SimMIM, simultaneous multivariate information maximisation: one backbone, many tasks."""

from collections.abc import Mapping, Sequence
from math import inf, log
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from . import bounds
from .losses import linear_cross_entropy
from .problem import compute_dtype, validation

IGNORED = -100


class MultiTaskOutput(NamedTuple):
    """What MultiTaskSimMIM returns."""

    loss: Tensor
    """() what to minimise."""
    information: dict[str, Tensor]
    """The information of every task of the batch, () in nats; NaN for a task whose labels are all missing."""


class _Reading(NamedTuple):
    """What one task's part of a batch says. Finite, with gradient, also where no label is known."""

    information: Tensor
    """() nats."""
    shortfall: Tensor
    """() nats, from the most that the information could be: never below 0."""
    known: Tensor
    """() bool, whether the batch says anything about the task."""


class MultiTaskSimMIM(nn.Module):
    """Simultaneous multivariate information maximisation: sum_t w_t I(X_t; Y_t) of named tasks, in nats.

    `backbone` maps the inputs of any task to features (N, d); `heads` maps each task's name to a module from those to
    logits (N, C). forward({task: (x, y)}) takes the tasks that the batch has, one or more, and gives
    MultiTaskOutput(loss, information). Tasks that are given one and the same object for x share one run of the
    backbone.

    y (N,) are labels, integers in [0, C): the information is the bound of Barber and Agakov, H(Y) - cross entropy
    (see bounds.barber_agakov). Rows labelled -100 are left out. A task with no other label in the batch adds nothing
    to the loss, with zero gradient, and reads NaN: it is not known, rather than 0. H(Y) is that of `priors[task]`
    (C,), the class probabilities where the rows are drawn, or else of the batch's labels; it moves the information
    and not the gradients.

    y None: no labels. The information is what the predictions tell of the inputs, H(mean p) - mean H(p)
    (bounds.prediction_information). The source text's own formula, -sum p log p, is the second term alone
    (bounds.conditional_entropy): one sure answer to everything makes it 0, and the first term keeps it from that.

    A head that is an nn.Linear never makes its logits for labelled rows: see linear_cross_entropy.

    `weights` are numbers of at least 0, 1 for the tasks that they leave out: loss = -sum_t w_t I_t. With
    weights="uncertainty" they are learned (Kendall, Gal and Cipolla 2018, arXiv:1705.07115):

        loss = sum_t exp(-2 log_sigma_t) L_t + log_sigma_t

    over the tasks that the batch has labels of, or inputs without labels. L_t is what the information lacks: the
    cross entropy, or log C - I_t without labels. `log_sigma` holds one parameter for every task.

    Raises TypeError or ValueError naming the task, what it got and what it needs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        heads: Mapping[str, nn.Module],
        weights: Mapping[str, float] | Literal["uncertainty"] | None = None,
        priors: Mapping[str, Tensor] | None = None,
    ):
        super().__init__()
        _check_names(heads)
        self.backbone, self.heads = backbone, nn.ModuleDict(heads)
        self.log_sigma: nn.ParameterDict | None = None
        self.weights: dict[str, float] = {}
        if weights == "uncertainty":
            self.log_sigma = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in heads})
        elif isinstance(weights, str):
            raise ValueError(f"weights must be numbers by task, 'uncertainty' or None, got {validation.shown(weights)}")
        else:
            self.weights = self._checked_weights({} if weights is None else weights)
        # Of a prior only its entropy is needed, and its length for a check.
        priors = {} if priors is None else priors
        validation.mapping(priors, "priors", "tensors")
        self._priors = {task: self._checked_prior(task, prior) for task, prior in priors.items()}

    def forward(self, batch: Mapping[str, tuple[Any, Tensor | None]]) -> MultiTaskOutput:
        validation.mapping(batch, "batch", "pairs (x, y)")
        if not batch:
            raise ValueError(f"batch must have one of the tasks {', '.join(self.heads)} or more, got none")
        self._check_tasks(batch, "batch")
        for task, pair in batch.items():
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(f"batch[{task!r}] must be a pair (x, y), got {validation.describe(pair)}")
        parts, information = [], {}
        for task, features in self._features(batch).items():
            reading = self._read(task, features, batch[task][1])
            parts.append(torch.where(reading.known, self._part_of_loss(task, reading), 0.0))
            information[task] = torch.where(reading.known, reading.information, torch.nan)
        return MultiTaskOutput(sum(parts[1:], parts[0]), information)

    def _features(self, batch: Mapping[str, tuple[Any, Tensor | None]]) -> dict[str, Tensor]:
        """The backbone's output for every task, made once for each input object."""
        made: dict[int, Tensor] = {}
        for x, _ in batch.values():
            if id(x) not in made:
                made[id(x)] = self.backbone(x)
        return {task: made[id(x)] for task, (x, _) in batch.items()}

    def _read(self, task: str, features: Tensor, target: Tensor | None) -> _Reading:
        head = self.heads[task]
        linear = _plain_linear(head)
        if target is not None and linear is not None:
            return self._labelled(task, features, target, linear)
        logits = validation.features(head(features), f"logits of task {task!r}")
        return self._unlabelled(logits) if target is None else self._labelled(task, logits, target, None)

    def _labelled(self, task: str, x: Tensor, target: Tensor, linear: nn.Linear | None) -> _Reading:
        """From the logits x, or from the features x and the layer that would make logits of them."""
        validation.features(x, f"features of task {task!r}")
        classes = x.shape[1] if linear is None else linear.out_features
        target = validation.indices(target, f"labels of task {task!r}", len(x), classes, x, also=IGNORED)
        count = (target != IGNORED).sum()
        if linear is None:
            total = F.cross_entropy(x.to(compute_dtype(x.dtype)), target, reduction="sum", ignore_index=IGNORED)
        else:
            total = linear_cross_entropy(x, linear.weight, target, linear.bias, IGNORED, "sum")
        cross_entropy = total / count.clamp(min=1)
        entropy = self._class_entropy(task, target, classes, cross_entropy.dtype)
        return _Reading(entropy - cross_entropy, cross_entropy, count > 0)

    def _unlabelled(self, logits: Tensor) -> _Reading:
        information = bounds.prediction_information(logits)
        shortfall = log(logits.shape[1]) - information
        return _Reading(information, shortfall, torch.ones_like(information, dtype=torch.bool))

    def _class_entropy(self, task: str, target: Tensor, classes: int, dtype: torch.dtype) -> Tensor | float:
        if task not in self._priors:
            return bounds.label_entropy(target, classes, IGNORED, dtype)
        size, entropy = self._priors[task]
        if size != classes:
            raise ValueError(
                f"priors[{task!r}] must have as many entries as the task has classes, {classes}; got {size}"
            )
        return entropy

    def _part_of_loss(self, task: str, reading: _Reading) -> Tensor:
        if self.log_sigma is None:
            return -self.weights.get(task, 1.0) * reading.information
        log_sigma = self.log_sigma[task]
        return (-2 * log_sigma).exp() * reading.shortfall + log_sigma

    def _checked_weights(self, weights: Mapping[str, float]) -> dict[str, float]:
        validation.mapping(weights, "weights", "numbers")
        self._check_tasks(weights, "weights")
        found = {task: validation.number(weight, f"weights[{task!r}]") for task, weight in weights.items()}
        for task, weight in found.items():
            if not 0 <= weight < inf:
                raise ValueError(f"weights[{task!r}] must be a number of at least 0 and finite, got {weight!r}")
        return found

    def _checked_prior(self, task: str, prior: Tensor) -> tuple[int, float]:
        """How many classes, and their entropy."""
        self._check_tasks([task], "priors")
        if not isinstance(prior, Tensor) or prior.dim() != 1:
            raise TypeError(f"priors[{task!r}] must be a tensor of shape (C,), got {validation.describe(prior)}")
        prior = validation.probabilities(prior, f"priors[{task!r}]", len(prior), prior)
        return len(prior), bounds.entropy(prior.detach().to(compute_dtype(prior.dtype))).item()

    def _check_tasks(self, tasks: Mapping | Sequence[str], name: str) -> None:
        unknown = [task for task in tasks if task not in self.heads]
        if unknown:
            shown = ", ".join(map(validation.shown, unknown[:4]))
            raise ValueError(f"{name} must have tasks among {', '.join(self.heads)}; got {shown}")

    def extra_repr(self) -> str:
        if self.log_sigma is not None:
            return "weights='uncertainty'"
        return f"weights={self.weights}" if self.weights else ""


def _check_names(heads: Mapping[str, nn.Module]) -> None:
    validation.mapping(heads, "heads", "modules")
    if not heads:
        raise ValueError("heads must have one task or more, got none")
    for task, head in heads.items():
        if not isinstance(task, str) or not isinstance(head, nn.Module):
            raise TypeError(f"heads must map names to modules, got {task!r}: {validation.describe(head)}")
        # Names become attributes of PyTorch's containers, which some attributes of theirs must not give way to.
        if not task or "." in task or hasattr(nn.ModuleDict(), task) or hasattr(nn.ParameterDict(), task):
            raise ValueError(f"heads must have names that nn.ModuleDict and nn.ParameterDict take, got {task!r}")


def _plain_linear(head: nn.Module) -> nn.Linear | None:
    """The head, if a call of it is its linear map and nothing besides: no subclass's, no parametrisation, no hook."""
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    return head if type(head) is nn.Linear and not any(hooks) else None


def transfer(source: nn.Module, target: nn.Module, layers: int | Sequence[str], freeze: bool = False) -> list[str]:
    """Copies the state of layers from one module to another; returns the layers' names, as the target has them.

    A layer is a module, at whatever depth, that has parameters or saved buffers of its own, such as a convolution or a
    batch norm; layers stand in the order in which their modules were defined. `layers` is how many, the first ones
    of both, whatever their names; or the names of modules that both have, each with all layers inside. freeze=True
    stops the gradients of the parameters that were copied; the running statistics of a batch norm are stopped by
    its eval().

    Values are converted to the target's dtype and device. A parameter that the target shares among layers changes in
    all of them.

    Nothing is copied unless everything fits. Raises TypeError or ValueError naming the layer: of another type, with
    other tensors or of other shapes, missing on one side, without data (lazy or meta), of a dtype that cannot be
    converted without loss of kind, or sharing in the target what differs in the source.
    """
    validation.module(source, "source")
    validation.module(target, "target")
    validation.flag(freeze, "freeze")
    if source is target:
        raise ValueError("source and target must be two modules, got one and the same")
    pairs = _first_layers(source, target, layers) if isinstance(layers, int) else _named_layers(source, target, layers)
    copies: list[tuple[str, Tensor, Tensor]] = []
    for names, modules in pairs.items():
        copies += _matched_tensors(names, modules)
    _check_sharing(copies)
    with torch.no_grad():
        for _, given, kept in copies:
            kept.copy_(given)
    if freeze:
        for _, _, kept in copies:
            kept.requires_grad_(False)
    return [name for _, name in pairs]


_Pairs = dict[tuple[str, str], tuple[nn.Module, nn.Module]]


def _layers(module: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    return {name: part for name, part in module.named_modules(prefix=prefix) if _own_state(part)}


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers of the module itself, not of those inside."""
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if "." not in name and isinstance(value, Tensor)}


def _first_layers(source: nn.Module, target: nn.Module, number: int) -> _Pairs:
    given, kept = list(_layers(source).items()), list(_layers(target).items())
    most = min(len(given), len(kept))
    if isinstance(number, bool) or not 0 <= number <= most:
        raise ValueError(
            f"layers must be between 0 and {most}, where source has {len(given)} and target {len(kept)}; "
            f"got {validation.shown(number)}"
        )
    return {(a, b): (x, y) for (a, x), (b, y) in zip(given[:number], kept[:number], strict=True)}


def _named_layers(source: nn.Module, target: nn.Module, names: Sequence[str]) -> _Pairs:
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"layers must be an integer or a sequence of names, got {validation.describe(names)}")
    pairs: _Pairs = {}
    for name in names:
        given, kept = (_layers(_submodule(m, name, of), name) for m, of in ((source, "source"), (target, "target")))
        for missing, of in ((kept.keys() - given.keys(), "source"), (given.keys() - kept.keys(), "target")):
            if missing:
                raise ValueError(f"layers must name modules with the same layers: {of} has no {min(missing)!r}")
        if not given:
            raise ValueError(f"layers must name modules with parameters or buffers, and {name!r} has none")
        pairs |= {(layer, layer): (given[layer], kept[layer]) for layer in given}
    return pairs


def _submodule(module: nn.Module, name: str, of: str) -> nn.Module:
    found = dict(module.named_modules(remove_duplicate=False)).get(name)
    if found is None:
        raise ValueError(f"layers must name modules of both source and target: {of} has no {name!r}")
    return found


def _matched_tensors(names: tuple[str, str], modules: tuple[nn.Module, nn.Module]) -> list[tuple[str, Tensor, Tensor]]:
    """(name in the target, from, to) of every tensor of two layers that fit each other."""
    layer = f"layer {names[1]!r} of target (from {names[0]!r} of source)"
    kinds = [type(module).__name__ for module in modules]
    if type(modules[0]) is not type(modules[1]):
        raise TypeError(f"{layer} must be of the type {kinds[0]}, got {kinds[1]}")
    given, kept = (_own_state(module) for module in modules)
    if given.keys() != kept.keys():
        raise ValueError(f"{layer} must have the tensors {', '.join(given)}; got {', '.join(kept)}")
    for key in given:
        what, a, b = f"{key} of {layer}", given[key], kept[key]
        if any(is_lazy(t) or t.is_meta for t in (a, b)):
            raise ValueError(f"{what} must have data on both sides, got an uninitialised or meta tensor")
        if a.shape != b.shape:
            raise ValueError(f"{what} must have shape {tuple(a.shape)}, got {tuple(b.shape)}")
        if not torch.can_cast(a.dtype, b.dtype):
            raise TypeError(f"{what} must have a dtype that {a.dtype} converts to, got {b.dtype}")
    return [(f"{names[1]}.{key}".removeprefix("."), given[key], kept[key]) for key in given]


def _check_sharing(copies: list[tuple[str, Tensor, Tensor]]) -> None:
    """One tensor of the target must not be given two tensors of the source."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, given, kept in copies:
        other, before = first.setdefault(id(kept), (name, given))
        if before is not given:
            raise ValueError(f"{other} and {name} are one tensor in target and must be one in source, got two")
