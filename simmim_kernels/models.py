"""Modules around a user's own networks: an estimator of mutual information, and the first reading of SimMIM."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import bounds
from .critics import CosineCritic
from .operator.global_batch import global_batch
from .problem import validation
from .scores import PairwiseScores

BOUNDS = {
    name: getattr(bounds, name)
    for name in (
        "infonce",
        "dv",
        "mine",
        "nwj",
        "tuba",
        "js",
        "js_divergence",
        "smile",
        "interpolated",
        "flo",
        "leave_one_out",
        "club",
        "barber_agakov",
    )
}


class MutualInformation(nn.Module):
    """A bound on I(X; Y) with a critic: forward(x (N, dx), y (M, dy), positives=None) -> (), in nats.

    `critic` is a module or a function from (x, y), and from (x, y, positives) where positives are given, to
    PairwiseScores. `bound` is a name of simmim_kernels.bounds, or a function or module of your own from
    (scores, **params) to a scalar; `params` go to it. The per-row parameters, log_baseline and u, may
    be numbers, tensors, nn.Parameters or modules: log_baseline(x) and u(x, y), each to (N,) or (N, 1).
    With `group`, which goes to the critic, the bound is that of the rows of all its ranks, with the same value on each;
    a bound of your own then takes its means by scores.mean.

    bound="mine" keeps the running mean of the partition function, as its log, in the buffer `log_running_mean`:
    running mean = decay * running mean + (1 - decay) * batch mean, from training batches only, with
    `decay` = 0.99 by default.

    Raises ValueError for an unknown bound, and for parameters that the bound lacks or misses; TypeError for a critic
    that returns no PairwiseScores and for a bound that returns no scalar.
    """

    log_running_mean: Tensor

    def __init__(
        self,
        critic: Callable[..., PairwiseScores],
        bound: str | Callable[..., Tensor] = "infonce",
        *,
        group: Any = None,
        **params: Any,
    ):
        super().__init__()
        self.group = None if group is None else global_batch(group)
        validation.function(critic, "critic")
        if not callable(bound):
            validation.choice(bound, "bound", list(BOUNDS))
        self.critic, self.bound = critic, bound
        if bound == "mine":
            self.decay = validation.number(params.pop("decay", 0.99), "decay")
            if not 0 < self.decay < 1:
                raise ValueError(f"decay must be between 0 and 1, got {self.decay!r}")
            self.register_buffer("log_running_mean", torch.tensor(-torch.inf, dtype=torch.float64))
        self._check_params(params)
        self._params = tuple(params)
        for name, value in params.items():
            # Modules, parameters and tensors become this module's own: trained, moved and saved with it.
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def _check_params(self, params: dict[str, Any]) -> None:
        """That the bound takes them, and wants no others."""
        accepted = dict(inspect.signature(self._function).parameters)
        name = self.bound if isinstance(self.bound, str) else _name(self.bound)
        # The scores, by whatever name.
        first = next(iter(accepted.values()), None)
        if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
            raise TypeError(f"bound must take scores first, got {name}, which takes no positional argument")
        if first.kind is not first.VAR_POSITIONAL:
            del accepted[first.name]
        if self.bound == "mine":
            del accepted["log_running_mean"]
        anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        named = {n: p for n, p in accepted.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        unknown = set() if anything else set(params) - set(named)
        missing = {n for n, p in named.items() if p.default is p.empty} - set(params)
        if unknown or missing:
            wanted = ", ".join(named) or "none"
            raise ValueError(f"params of bound {name!r} must be: {wanted}; got {', '.join(params) or 'none'}")
        taken = [n for n in params if hasattr(self, n)]
        if taken:
            raise ValueError(f"params must not have the names of a module's attributes, got {', '.join(taken)}")

    @property
    def _function(self) -> Callable[..., Tensor]:
        return BOUNDS[self.bound] if isinstance(self.bound, str) else self.bound

    def _scores(self, *tensors: Tensor) -> PairwiseScores:
        scores = self.critic(*tensors) if self.group is None else self.critic(*tensors, group=self.group)
        validation.scores(scores, PairwiseScores, of_critic=True)
        return scores

    def forward(self, x: Tensor, y: Tensor, positives: Tensor | None = None) -> Tensor:
        scores = self._scores(x, y) if positives is None else self._scores(x, y, positives)
        params = {name: getattr(self, name) for name in self._params}
        for name, value in params.items():
            if isinstance(value, nn.Module):
                params[name] = value(x, y) if name == "u" else value(x)
        if self.bound == "mine":
            params["log_running_mean"] = self._update_running_mean
        value = self._function(scores, **params)
        if not isinstance(value, Tensor) or value.dim():
            raise TypeError(f"bound must return a tensor without dimensions, got {validation.describe(value)}")
        return value

    def _update_running_mean(self, batch: Tensor) -> Tensor:
        """The log of the running mean with this batch's (in training); the batch's own before there is any."""
        batch = batch.to(self.log_running_mean.dtype)
        before = self.log_running_mean.clone()
        after = before
        if self.training:
            after = torch.logaddexp(before + math.log(self.decay), batch + math.log1p(-self.decay))
        after = torch.where(before == -torch.inf, batch, after)
        if self.training:
            self.log_running_mean.copy_(after)
        return after

    @torch.no_grad()
    def readouts(self, x: Tensor, y: Tensor, tau: float = 5.0) -> dict[str, Tensor]:
        """What this critic reads as by several bounds, side by side: x (N, dx), y (M, dy), () nats each.

        See bounds.readouts; `tau` is that of its `smile`.
        """
        return bounds.readouts(self._scores(x, y), tau)

    def extra_repr(self) -> str:
        plain = {name: getattr(self, name) for name in ("bound", *self._params)}
        plain = {name: value for name, value in plain.items() if not isinstance(value, (nn.Module, Tensor))}
        return ", ".join(f"{n}={_name(v) if callable(v) else repr(v)}" for n, v in plain.items())


def _name(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)


class SimMIMOutput(NamedTuple):
    """What SimMIM returns."""

    loss: Tensor
    """() what to minimise: -mi."""
    mi: Tensor
    """() the bound's value, in nats (for "js_divergence", its objective)."""
    z1: Tensor
    """(N, k) the first view on the manifold."""
    z2: Tensor
    """(N, k) the second view on the manifold."""


class SimMIM(nn.Module):
    """Simplified manifold information maximisation: an encoder onto a low-dimensional manifold, without labels.

    Maximises a lower bound on the mutual information between the encodings of two views. The source text's own
    loss, -mean log(p / (1 - p)) with p = sigmoid(s), is the joint term alone, -mean s_ii: it has no maximum and
    collapses. The marginal term that every bound adds is what keeps the encodings apart.

    `critic` is by default CosineCritic(temperature=0.1); `projector`, where given, stands between the encoder and
    the critic and is left out of `encode`; `group` and `params` are those of MutualInformation.

    forward(view1, view2) -> SimMIMOutput(loss, mi, z1, z2): two views of the same N examples, as `encoder` takes them,
    to points (N, k).

    Raises ValueError for an unknown bound, and for parameters that the bound lacks or misses.
    """

    def __init__(
        self,
        encoder: nn.Module,
        critic: Callable[..., PairwiseScores] | None = None,
        bound: str | Callable[..., Tensor] = "infonce",
        projector: nn.Module | None = None,
        *,
        group: Any = None,
        **params: Any,
    ):
        super().__init__()
        validation.function(encoder, "encoder")
        self.encoder = encoder
        self.projector = nn.Identity() if projector is None else projector
        critic = CosineCritic(temperature=0.1) if critic is None else critic
        self.information = MutualInformation(critic, bound, group=group, **params)

    def encode(self, x: Tensor) -> Tensor:
        """(N, k) points on the manifold, of x as the encoder takes it."""
        return self.encoder(x)

    def forward(self, view1: Tensor, view2: Tensor) -> SimMIMOutput:
        z1, z2 = self.encode(view1), self.encode(view2)
        mi = self.information(self.projector(z1), self.projector(z2))
        return SimMIMOutput(-mi, mi, z1, z2)
