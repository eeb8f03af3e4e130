"""The CUDA library: found, loaded and declared for ctypes as csrc/cuda/simmim_cuda.h says.

A pointer is an address on the device, such as `tensor.data_ptr()`, or None. What it points to must stay until the work
that a call queued is done, as PyTorch's allocator sees to for work on the current stream.
"""

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

# SIMMIM_CUDA_INTERFACE of csrc/cuda/simmim_cuda.h, which this file follows.
_INTERFACE = 1
_LIBRARY = Path(__file__).with_name("_cuda.so")


class ProblemStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("n", "m", "d")),
        *((name, c_void_p) for name in ("x", "y")),
        *((name, c_int64) for name in ("x_row", "y_row")),
        *((name, c_void_p) for name in ("scale", "row_bias", "col_bias", "positives")),
        *((name, c_int64) for name in ("first_row", "first_column")),
        *((name, c_int32) for name in ("leaves_out", "device")),
        ("stream", c_void_p),
        ("variant", c_int32),
    )


class GradientStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("row_reference", "row_upstream", "col_reference", "col_upstream", "weights")),
        ("stride", c_int64),
    )


def loaded() -> ctypes.CDLL | None:
    """The library, or None for the reason that `why_not` gives."""
    return _load()[0]


def why_not() -> str | None:
    """Why there is no library, in a line; None where there is one."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if not _LIBRARY.exists():
        return None, "no CUDA library: not built: bash csrc/cuda/build.sh does, in a clone, where there is nvcc"
    try:
        found = ctypes.CDLL(str(_LIBRARY))
        if found.simmim_cuda_interface() != _INTERFACE:
            return None, "the CUDA library was built from other sources: build it again"
        declare(found)
    except OSError as error:
        return None, f"the CUDA library cannot be loaded: {error}"
    except AttributeError as error:  # a symbol that ctypes does not find
        return None, f"the CUDA library is another one: {error}"
    return found, None


def declare(library: ctypes.CDLL) -> None:
    library.simmim_cuda_workspace.argtypes, library.simmim_cuda_workspace.restype = (c_int64, c_int64), c_int64
    for names in (library.simmim_cuda_variants, library.simmim_cuda_message):
        names.argtypes, names.restype = (), c_char_p
    library.simmim_cuda_log_sum_exps.argtypes = (POINTER(ProblemStruct), c_void_p, c_void_p, c_void_p)
    library.simmim_cuda_weights.argtypes = (POINTER(ProblemStruct), POINTER(GradientStruct))
    for calls in (library.simmim_cuda_log_sum_exps, library.simmim_cuda_weights):
        calls.restype = c_int
