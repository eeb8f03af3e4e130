"""Every check of a user's arguments, and its message: which argument, what it got, what it needs.

Checks that read a tensor's values are made where values are at hand; under torch.compile they are left out.
"""

import math
import numbers
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from .messages import describe, dtype_name, is_dtensor, shown
from .problem import compute_dtype

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _dense(value: Tensor, name: str) -> None:
    if is_dtensor(value):
        raise TypeError(
            f"{name} must be a plain tensor, got a DTensor: .to_local() makes one of this rank's rows, "
            ".full_tensor() one of all"
        )
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got {describe(value)}; to_dense() makes one")


def features(value: object, name: str, may_be_meta: bool = False, may_be_empty: bool = False) -> Tensor:
    """A (N, d) tensor of a floating dtype with N >= 1, or N >= 0 where it may be empty, and d >= 1."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (N, d), got {describe(value)}")
    _dense(value, name)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must have dtype float64, float32, bfloat16 or float16, got {describe(value)}")
    if value.dim() != 2:
        raise ValueError(f"{name} must have shape (N, d), got {describe(value)}")
    if (value.shape[0] == 0 and not may_be_empty) or value.shape[1] == 0:
        raise ValueError(f"{name} must have at least one row and one column, got {describe(value)}")
    if not may_be_meta:
        _on_a_device(value, name)
    return value


def _on_a_device(value: Tensor, name: str) -> None:
    if value.device.type == "meta":
        raise ValueError(f"{name} must have values, got {describe(value)}")


def operands(
    x: object,
    y: object,
    names: tuple[str, str],
    *,
    same_width: bool = True,
    same_length: bool = False,
    may_be_empty: bool = False,
) -> tuple[Tensor, Tensor]:
    """Two feature matrices that can be scored against each other."""
    x, y = (features(value, name, True, may_be_empty) for value, name in zip((x, y), names, strict=True))
    if x.device != y.device:
        raise ValueError(f"{names[0]} and {names[1]} must be on one device, got {x.device} and {y.device}")
    _on_a_device(x, names[0])
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


def guide(
    x: object, y: object, limit: object, shape: tuple[int, int], like: Tensor, may_be_empty: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """A guide's features of all rows and columns, and its limits of the rows; constants, in the compute dtype."""
    names = ("guide_x", "guide_y")
    sides = operands(x, y, names, may_be_empty=may_be_empty)
    for side, name, length in zip(sides, names, shape, strict=True):
        if len(side) != length or side.device != like.device:
            raise ValueError(f"{name} must have {length} rows on {like.device}, got {describe(side)}")
    limits, dtype = vector(limit, "limit", shape[0], like), compute_dtype(sides[0].dtype)
    return sides[0].detach().to(dtype), sides[1].detach().to(dtype), limits.detach().to(dtype)


def scalar(value: object, name: str, like: Tensor) -> Tensor:
    """A number or a tensor of one element, as a 0-dim floating tensor on the device of `like`."""
    if not isinstance(value, Tensor):
        value = number(value, name, "a number or a tensor of one element")
        dtype = compute_dtype(like.dtype)
        return torch.full((), _within(value, name, dtype), dtype=dtype, device=like.device)
    _dense(value, name)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must have a floating dtype, got {describe(value)}")
    if value.numel() != 1:
        raise ValueError(f"{name} must have one element, got {describe(value)}")
    if value.device != like.device and value.device.type != "cpu":
        raise ValueError(f"{name} must be on {like.device}, got {describe(value)}")
    # A reshape that changes nothing would still cost a node in every backward.
    return (value if value.dim() == 0 else value.reshape(())).to(like.device)


def _within(value: float, name: str, dtype: torch.dtype) -> float:
    """A number that a dtype holds."""
    if not abs(value) <= torch.finfo(dtype).max:
        raise ValueError(f"{name} must be finite in {dtype_name(dtype)}, got {value!r}")
    return value


def number(value: object, name: str, what: str = "a number") -> float:
    """A real number: Python's, NumPy's, or a NumPy array without dimensions; no bool."""
    if isinstance(value, float):
        return float(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Real)):
        raise TypeError(f"{name} must be {what}, got {describe(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number that a float holds, got {describe(value)}") from None


def integer(value: object, name: str, least: int | None = None) -> int:
    """An integer that 64 bits hold, Python's or NumPy's, of at least `least`; no bool."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    needs = "an integer" if least is None else f"an integer of at least {least}"
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):
        raise TypeError(f"{name} must be {needs}, got {describe(value)}")
    found = int(value)
    if not -(2**63) <= found < 2**63:
        raise ValueError(f"{name} must be {needs} that 64 bits hold, got {describe(value)}")
    if least is not None and found < least:
        raise ValueError(f"{name} must be {needs}, got {found}")
    return found


def positive(value: object, name: str) -> float | Tensor:
    """A number above zero, or a tensor, whose value is its owner's business: reading it would stall a GPU."""
    return value if isinstance(value, Tensor) else positive_number(value, name, "a number or a tensor of one element")


def positive_number(value: object, name: str, what: str = "a number", dtype: torch.dtype = torch.float64) -> float:
    """A number above zero that a dtype holds."""
    found = number(value, name, what)
    if not found > 0:
        raise ValueError(f"{name} must be greater than 0, got {found!r}")
    return _within(found, name, dtype)


def reciprocal(value: object, name: str, like: Tensor) -> Tensor:
    """1 / `value`, a number above zero or a tensor of one element, as `scalar` has it."""
    if isinstance(value, Tensor):
        return 1 / scalar(value, name, like)
    found, dtype = positive_number(value, name), compute_dtype(like.dtype)
    least = 1 / torch.finfo(dtype).max
    if found < least:
        raise ValueError(f"{name} must be at least {least:.1g} for {dtype_name(dtype)}, got {found!r}")
    return 1 / scalar(found, name, like)


def fraction(value: object, name: str) -> float:
    """A number in [0, 1]."""
    found = number(value, name)
    if not 0 <= found <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {found!r}")
    return found


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


def labels(value: object, name: str, classes: int, ignored: int) -> Tensor:
    """(N,) integers in [0, classes), or `ignored`."""
    if not isinstance(value, Tensor) or value.is_nested or value.dim() != 1:
        raise TypeError(f"{name} must be a tensor of shape (N,), got {describe(value)}")
    return indices(value, name, len(value), classes, value, also=ignored)


def weights(value: object, name: str) -> Tensor:
    """(C,) numbers of a floating dtype."""
    if not isinstance(value, Tensor) or value.is_nested or value.dim() != 1:
        raise TypeError(f"{name} must be a tensor of shape (C,), got {describe(value)}")
    return vector(value, name, len(value), value)


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
    exception = "" if also is None else f" or equal to {also}"
    needed = f"{name} must be in [0, {below}){exception}"
    if value.device.type == "cuda":
        # A look at the values would wait for all that the device has been asked for.
        inside = (value >= 0) & (value < below)
        torch._assert_async((inside if also is None else inside | (value == also)).all(), needed)
        return value
    judged = value if also is None else value[value != also]
    if judged.numel():
        least, most = (int(end) for end in judged.aminmax())
        if least < 0 or most >= below:
            raise ValueError(f"{needed}, got values from {least} to {most}")
    return value


def _of_shape(value: object, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.is_nested:
        raise TypeError(f"{name} must be a tensor of shape {shape}, got {describe(value)}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {describe(value)}")
    _dense(value, name)
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {describe(value)}")
    return value


def _has_no_values(value: Tensor) -> bool:
    return value.is_meta or is_fake(value) or torch._C._functorch.is_functorch_wrapped_tensor(value)


def choice(value: object, name: str, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {shown(value)}")


def flag(value: object, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")
    return bool(value)


def mapping(value: object, name: str, what: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must map tasks to {what}, got {describe(value)}")


def module(value: object, name: str) -> None:
    if not isinstance(value, torch.nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {describe(value)}")


def floating_dtype(value: object, name: str) -> None:
    if value not in FLOATING:
        raise TypeError(f"{name} must be one of {', '.join(map(str, FLOATING))}; got {describe(value)}")


def function(value: object, name: str) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a module or a function, got {describe(value)}")


def scores(value: object, kind: type, of_critic: bool = False) -> None:
    """Of `kind`, which is PairwiseScores: an argument called `scores`, or what a critic returned."""
    if isinstance(value, kind):
        return
    if of_critic:
        raise TypeError(f"critic must return {kind.__name__}, got {describe(value)}")
    raise TypeError(
        f"scores must be {kind.__name__}, as a critic makes them of features: DotCritic()(x, y), or "
        f"{kind.__name__}(x, y); got {describe(value)}"
    )


def limits(lo: float, hi: float, dtype: torch.dtype) -> tuple[float, float]:
    """Of a clamp; each infinite, or a number that the dtype holds."""
    least, most = number(lo, "lo"), number(hi, "hi")
    for limit, name in ((least, "lo"), (most, "hi")):
        if -math.inf < limit < math.inf:  # as torch.compile can trace it
            _within(limit, name, dtype)
    if not least <= most:
        raise ValueError(f"lo must be at most hi, got lo={lo!r} and hi={hi!r}")
    return least, most


def dimension(dim: object) -> str:
    """ "rows" for dim 1, "columns" for 0, "total" for (0, 1), in Problem's words."""
    several = isinstance(dim, (tuple, list))
    axes = dim if isinstance(dim, (tuple, list)) else (dim,)
    found = [
        int(axis) % 2
        for axis in axes
        if isinstance(axis, (int, np.integer)) and not isinstance(axis, bool) and -2 <= axis < 2
    ]
    if several and len(axes) == 2 and sorted(found) == [0, 1]:
        return "total"
    if not several and found:
        return "rows" if found == [1] else "columns"
    raise ValueError(f"dim must be 0, 1 or (0, 1), got {shown(dim)}")
