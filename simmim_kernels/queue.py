"""A queue of features of earlier batches: the memory bank of MoCo (He et al. 2020) and of cross-batch memory."""

import torch
from torch import Tensor, nn

from .problem import validation


class Queue(nn.Module):
    """The last `size` features (dim,), without gradient, and their labels where labels=True.

        negatives = queue.features                                    # of earlier batches
        loss = sk.info_nce_loss(q, k, negatives, temperature) if len(negatives) else ...
        queue.enqueue(k)

        slots = queue.enqueue(z, y)                                   # labels: the batch itself is in, and left out
        loss = sk.supcon_loss(z, y, ref=queue.features, ref_labels=queue.labels, ref_index=slots)

    Saved with the module's state, moved and cast with it. Any loss takes `features` for its further columns.

    `size` and `dim` are integers above 0, `dtype` that of the features kept; `labels` (N,) come with features (N, dim).
    Raises TypeError or ValueError that names the argument, what it got and what it needs.
    """

    bank: Tensor
    label_bank: Tensor | None

    def __init__(self, size: int, dim: int, labels: bool = False, dtype: torch.dtype = torch.float32):
        super().__init__()
        size, dim = validation.integer(size, "size", least=1), validation.integer(dim, "dim", least=1)
        validation.floating_dtype(dtype, "dtype")
        self.register_buffer("bank", torch.zeros(size, dim, dtype=dtype))
        kept = torch.zeros(size, dtype=torch.int64) if validation.flag(labels, "labels") else None
        self.register_buffer("label_bank", kept)
        # Numbers and not buffers: reading them must not wait for a GPU.
        self._next = self._filled = 0

    @property
    def features(self) -> Tensor:
        """(M, dim), a copy of what is in the queue, M at most size; a later `enqueue` does not change it."""
        return self.bank[: self._filled].clone()

    @property
    def labels(self) -> Tensor:
        """(M,) int64, those of `features`. Raises ValueError for a queue without labels."""
        if self.label_bank is None:
            raise ValueError("labels must be True for a queue that keeps them, got False")
        return self.label_bank[: self._filled].clone()

    @torch.no_grad()
    def enqueue(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Puts features (N, dim), and labels (N,), in the place of the oldest; (N,) int64, the rows that hold them now.

        Raises ValueError for more features than the queue holds, and for labels where it keeps none or wants them.
        """
        size, dim = self.bank.shape
        validation.width(validation.features(features, "features"), dim, "features")
        if len(features) > size:
            raise ValueError(f"features must have at most {size} rows, as many as the queue, got {len(features)}")
        if (labels is None) != (self.label_bank is None):
            wanted = "None where the queue was made with labels=False" if labels is not None else "given"
            raise ValueError(f"labels must be {wanted}, got {validation.describe(labels)}")
        slots = (torch.arange(len(features), device=self.bank.device) + self._next) % size
        self.bank[slots] = features.to(self.bank)
        if labels is not None and self.label_bank is not None:
            self.label_bank[slots] = validation.integers(labels, "labels", len(features), features).to(slots.device)
        self._next = (self._next + len(features)) % size
        self._filled = min(self._filled + len(features), size)
        return slots

    def get_extra_state(self) -> dict[str, int]:
        return {"next": self._next, "filled": self._filled}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self._next, self._filled = state["next"], state["filled"]

    def extra_repr(self) -> str:
        size, dim = self.bank.shape
        return f"size={size}, dim={dim}, labels={self.label_bank is not None}, filled={self._filled}"
