"""Modules around a user's own networks: an estimator of mutual information, and the first reading of SimMIM."""

import inspect
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import bounds
from .critics import CosineCritic
from .problem import validation

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

    `critic` is a module whose forward(x, y, positives) gives PairwiseScores. `bound` is a name of
    simmim_kernels.bounds; `params` go to it. The per-row parameters, log_baseline and u, may be numbers, tensors,
    nn.Parameters or modules: log_baseline(x) and u(x, y), each to (N,) or (N, 1).

    bound="mine" keeps the running mean of the partition function, as its log, in the buffer `log_running_mean`:
    running mean = decay * running mean + (1 - decay) * batch mean, from training batches only, with
    `decay` = 0.99 by default.

    Raises ValueError for an unknown bound, and for parameters that the bound lacks or misses.
    """

    log_running_mean: Tensor

    def __init__(self, critic: nn.Module, bound: str = "infonce", **params: Any):
        super().__init__()
        validation.choice(bound, "bound", list(BOUNDS))
        self.critic, self.bound = critic, bound
        if bound == "mine":
            self.decay = params.pop("decay", 0.99)
            if not 0 < self.decay < 1:
                raise ValueError(f"decay must be between 0 and 1, got {self.decay!r}")
            self.register_buffer("log_running_mean", torch.tensor(-torch.inf, dtype=torch.float64))
        _, *accepted = inspect.signature(BOUNDS[bound]).parameters.values()
        accepted = [p for p in accepted if p.name != "log_running_mean"]
        unknown = set(params) - {p.name for p in accepted}
        missing = {p.name for p in accepted if p.default is p.empty} - set(params)
        if unknown or missing:
            wanted = ", ".join(p.name for p in accepted) or "none"
            raise ValueError(f"params of bound {bound!r} must be: {wanted}; got {', '.join(params) or 'none'}")
        self._params = tuple(params)
        for name, value in params.items():
            # Modules, parameters and tensors become this module's own: trained, moved and saved with it.
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor, y: Tensor, positives: Tensor | None = None) -> Tensor:
        scores = self.critic(x, y, positives) if positives is not None else self.critic(x, y)
        params = {name: getattr(self, name) for name in self._params}
        for name, value in params.items():
            if isinstance(value, nn.Module):
                params[name] = value(x, y) if name == "u" else value(x)
        if self.bound == "mine":
            params["log_running_mean"] = self._update_running_mean
        return BOUNDS[self.bound](scores, **params)

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
        return bounds.readouts(self.critic(x, y), tau)

    def extra_repr(self) -> str:
        plain = {name: getattr(self, name) for name in self._params}
        plain = {name: value for name, value in plain.items() if not isinstance(value, (nn.Module, Tensor))}
        return ", ".join(f"{name}={value!r}" for name, value in {"bound": self.bound, **plain}.items())


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
    the critic and is left out of `encode`; `params` go to the bound, as in MutualInformation.

    forward(view1, view2) -> SimMIMOutput(loss, mi, z1, z2): two views of the same N examples, as `encoder` takes them,
    to points (N, k).

    Raises ValueError for an unknown bound, and for parameters that the bound lacks or misses.
    """

    def __init__(
        self,
        encoder: nn.Module,
        critic: nn.Module | None = None,
        bound: str = "infonce",
        projector: nn.Module | None = None,
        **params: Any,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = nn.Identity() if projector is None else projector
        critic = CosineCritic(temperature=0.1) if critic is None else critic
        self.information = MutualInformation(critic, bound, **params)

    def encode(self, x: Tensor) -> Tensor:
        """(N, k) points on the manifold, of x as the encoder takes it."""
        return self.encoder(x)

    def forward(self, view1: Tensor, view2: Tensor) -> SimMIMOutput:
        z1, z2 = self.encode(view1), self.encode(view2)
        mi = self.information(self.projector(z1), self.projector(z2))
        return SimMIMOutput(-mi, mi, z1, z2)
