"""Every check of a user's arguments, and its message: which argument, what it got, what it needs.

Checks that read a tensor's values are made where values are at hand; under torch.compile they are left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .problem import compute_dtype

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"


def features(value: object, name: str) -> Tensor:
    """A (N, d) tensor of a floating dtype with N >= 1 and d >= 1."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (N, d), got {describe(value)}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must have dtype float64, float32, bfloat16 or float16, got {describe(value)}")
    if value.dim() != 2:
        raise ValueError(f"{name} must have shape (N, d), got {describe(value)}")
    if value.shape[0] == 0 or value.shape[1] == 0:
        raise ValueError(f"{name} must have at least one row and one column, got {describe(value)}")
    return value


def operands(
    x: object, y: object, names: tuple[str, str], *, same_width: bool = True, same_length: bool = False
) -> tuple[Tensor, Tensor]:
    """Two feature matrices that can be scored against each other."""
    x, y = features(x, names[0]), features(y, names[1])
    if x.device != y.device:
        raise ValueError(f"{names[0]} and {names[1]} must be on one device, got {x.device} and {y.device}")
    # Under autocast the operands take its dtype later, as those of a matrix product do; float64 alone stays itself.
    dtypes_may_differ = torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, y.dtype)
    if x.dtype != y.dtype and not dtypes_may_differ:
        raise TypeError(f"{names[0]} and {names[1]} must have one dtype, got {x.dtype} and {y.dtype}")
    if same_width and x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of columns d, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if same_length and x.shape[0] != y.shape[0]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of rows N, one pair a row, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return x, y


def width(value: Tensor, expected: int, name: str) -> None:
    if value.shape[1] != expected:
        raise ValueError(f"{name} must have shape (N, {expected}), got {describe(value)}")


def scalar(value: object, name: str, like: Tensor) -> Tensor:
    """A number or a tensor of one element, as a 0-dim floating tensor on the device of `like`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"{name} must be a number or a tensor of one element, got {describe(value)}")
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=compute_dtype(like.dtype), device=like.device)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must have a floating dtype, got {describe(value)}")
    if value.numel() != 1:
        raise ValueError(f"{name} must have one element, got {describe(value)}")
    if value.device != like.device and value.device.type != "cpu":
        raise ValueError(f"{name} must be on {like.device}, got {describe(value)}")
    # A reshape that changes nothing would still cost a node in every backward.
    return (value if value.dim() == 0 else value.reshape(())).to(like.device)


def positive(value: object, name: str) -> None:
    """A number above zero; a tensor's value is its owner's business, since reading it would stall a GPU."""
    if isinstance(value, (int, float)) and not value > 0:
        raise ValueError(f"{name} must be greater than 0, got {value!r}")


def fraction(value: object, name: str) -> None:
    """A number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")


def vector(value: object, name: str, size: int, like: Tensor) -> Tensor:
    """A floating tensor of shape (size,) on the device of `like`."""
    value = _of_shape(value, name, (size,), like)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must have a floating dtype, got {describe(value)}")
    return value


def probabilities(value: object, name: str, size: int, like: Tensor) -> Tensor:
    """A floating tensor of shape (size,), none of it below 0, with sum 1 to within 1e-4."""
    value = vector(value, name, size, like)
    if torch.compiler.is_compiling() or _has_no_values(value):
        return value
    total = float(value.sum(dtype=compute_dtype(value.dtype)))
    if not (value >= 0).all() or not abs(total - 1) <= 1e-4:
        raise ValueError(f"{name} must be probabilities, at least 0 and with sum 1; got sum {total:.6g}")
    return value


def integers(value: object, name: str, size: int, like: Tensor) -> Tensor:
    """An integer tensor of shape (size,) on the device of `like`, as int64."""
    value = _of_shape(value, name, (size,), like)
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype, got {describe(value)}")
    return value.long()


def indices(value: object, name: str, size: int, below: int, like: Tensor, also: int | None = None) -> Tensor:
    """Integers of shape (size,), each in [0, below), or equal to `also`."""
    value = integers(value, name, size, like)
    if torch.compiler.is_compiling() or _has_no_values(value):
        return value
    judged = value if also is None else value[value != also]
    if judged.numel():
        least, most = (int(end) for end in judged.aminmax())
        if least < 0 or most >= below:
            exception = "" if also is None else f" or equal to {also}"
            raise ValueError(f"{name} must be in [0, {below}){exception}, got values from {least} to {most}")
    return value


def _of_shape(value: object, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}, got {describe(value)}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {describe(value)}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {describe(value)}")
    return value


def _has_no_values(value: Tensor) -> bool:
    return value.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(value)


def choice(value: object, name: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def limits(lo: float, hi: float) -> tuple[float, float]:
    for value, name in ((lo, "lo"), (hi, "hi")):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {describe(value)}")
    if not lo <= hi:
        raise ValueError(f"lo must be at most hi, got lo={lo!r} and hi={hi!r}")
    return float(lo), float(hi)


def dimension(dim: object) -> str:
    """ "rows" for dim 1, "columns" for 0, "total" for (0, 1), in Problem's words."""
    if isinstance(dim, (tuple, list)):
        if sorted(dim) in ([0, 1], [-2, -1], [-1, 0], [-2, 1]):
            return "total"
    elif dim in (1, -1):
        return "rows"
    elif dim in (0, -2):
        return "columns"
    raise ValueError(f"dim must be 0, 1 or (0, 1), got {dim!r}")
