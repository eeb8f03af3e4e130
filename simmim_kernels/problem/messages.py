"""How a message shows a value: in a few characters of one line."""

import reprlib
import sys

import numpy as np
import torch
from torch import Tensor


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 4

    def repr_int(self, x: int, level: int) -> str:
        # Python itself refuses to write integers of more than 4300 digits.
        return repr(x) if x.bit_length() <= 128 else f"of {x.bit_length()} bits"


_short = _Short()


def shown(value: object) -> str:
    """A value in a few characters of one line."""
    text = describe(value) if isinstance(value, (Tensor, np.ndarray)) else _short.repr(value)
    # A function's repr is but an address, a module's a page.
    return f"a {type(value).__name__}" if " at 0x" in text or "\n" in text else text


def describe(value: object) -> str:
    """What an argument was, for the end of a message: its type and, in short, its value or shape."""
    if isinstance(value, Tensor) and value.is_nested:
        return f"a nested {dtype_name(value.dtype)} tensor"
    if isinstance(value, Tensor):
        layout = "" if value.layout == torch.strided else f"{dtype_name(value.layout)} "
        return f"a {layout}{dtype_name(value.dtype)} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    text = shown(value)
    return text if text == f"a {type(value).__name__}" else f"{type(value).__name__} {text}"


def dtype_name(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")


def is_dtensor(value: object) -> bool:
    """Whether a value is torch.distributed.tensor's, which is imported by those who make one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
