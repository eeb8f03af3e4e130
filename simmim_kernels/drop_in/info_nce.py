"""info-nce-pytorch's InfoNCE and info_nce (of 0.1.4), without the logits."""

from info_nce import InfoNCE as _InfoNCE
from info_nce import info_nce as _info_nce
from torch import Tensor

from ..losses import info_nce_loss
from ..problem import validation
from ._small import is_small

DENSE_PAIRS = 2**16


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float = 0.1,
    reduction: str = "mean",
    negative_mode: str = "unpaired",
) -> Tensor:
    """info-nce-pytorch's info_nce: negative_keys (M, d) of all queries, or (N, M, d) for negative_mode="paired".

    Without negative_keys it runs itself up to 2^16 pairs.
    """
    validation.choice(negative_mode, "negative_mode", ("unpaired", "paired"))
    dimensions = 3 if negative_mode == "paired" else 2
    if negative_keys is not None and negative_keys.dim() != dimensions:
        raise ValueError(
            f"negative_keys must have {dimensions} dimensions where negative_mode is {negative_mode!r}, "
            f"got {validation.describe(negative_keys)}"
        )
    if negative_keys is None and is_small(query, positive_key, DENSE_PAIRS):
        return _info_nce(query, positive_key, None, temperature, reduction, negative_mode)
    return info_nce_loss(query, positive_key, negative_keys, temperature, reduction)


class InfoNCE(_InfoNCE):
    """info-nce-pytorch's InfoNCE."""

    def forward(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None) -> Tensor:
        return info_nce(query, positive_key, negative_keys, self.temperature, self.reduction, self.negative_mode)
