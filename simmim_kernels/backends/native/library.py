"""The native CPU library: found, loaded and declared for ctypes as csrc/cpu/simmim_cpu.h says.

Calls release the GIL, as all of ctypes.CDLL do. A pointer is an address, such as `tensor.data_ptr()`, or None; what it
points to must outlive the call, and no longer.
"""

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch  # noqa: F401  loads its OpenMP, which the library then takes too: one pool of threads for both

# SIMMIM_INTERFACE of csrc/cpu/simmim_cpu.h, which this file follows.
_INTERFACE = 3
# SIMMIM_ROW_STEP
ROW_STEP = 96
_LIBRARY = Path(__file__).with_name("_native.so")
_REASON = Path(__file__).with_name("_native_unavailable.txt")


class ProblemStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("n", "m", "d")),
        *((name, c_void_p) for name in ("x", "y")),
        *((name, c_int64) for name in ("x_row", "x_column", "y_row", "y_column")),
        *((name, c_int32) for name in ("dtype", "function", "joint", "threads")),
        *((name, c_double) for name in ("scale", "lo", "hi")),
        *((name, c_void_p) for name in ("row_bias", "col_bias", "positives", "row_ids", "col_ids")),
        ("ids", c_int64),
    )


class Values(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("rows", "columns", "joint", "entropies", "scores"))


class Gradients(ctypes.Structure):
    _fields_ = tuple(
        (name, c_void_p)
        for name in (
            *("rows", "columns", "grad_rows", "grad_columns", "joint", "grad_entropies", "scores"),
            *("dx", "dy", "drow", "dcol", "dscale", "total"),
        )
    )


def library() -> ctypes.CDLL | None:
    """The library, or None for the reason that `why_not` gives."""
    return _load()[0]


def why_not() -> str | None:
    """Why there is no library, in a line; None where there is one."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if not _LIBRARY.exists():
        reason = "not built: pip install -e . does"
        if _REASON.exists():
            reason = _REASON.read_text(encoding="utf-8").splitlines()[0]  # the others are the compiler's
        return None, f"no native library: {reason}"
    try:
        loaded = ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        return None, f"the native library cannot be loaded: {error}"
    if loaded.simmim_interface() != _INTERFACE:
        return None, "the native library was built from other sources: build it again"
    loaded.simmim_forward.argtypes = (POINTER(ProblemStruct), POINTER(Values))
    loaded.simmim_forward.restype = c_int
    loaded.simmim_backward.argtypes = (POINTER(ProblemStruct), POINTER(Gradients))
    loaded.simmim_backward.restype = c_int
    for names in (loaded.simmim_built_for, loaded.simmim_instruction_sets, loaded.simmim_in_use):
        names.argtypes, names.restype = (), c_char_p
    loaded.simmim_openmp_threads.argtypes = ()
    loaded.simmim_openmp_threads.restype = c_int
    loaded.simmim_choose.argtypes = (c_char_p,)
    loaded.simmim_choose.restype = c_int
    return loaded, None


def built_for() -> tuple[str, ...]:
    """The instruction sets that the library was built for, best first, run here or not. Empty without a library."""
    loaded = library()
    return () if loaded is None else tuple(loaded.simmim_built_for().decode().split(","))


def instruction_sets() -> tuple[str, ...]:
    """Those that the library was built for and this processor runs, best first. Empty without a library."""
    loaded = library()
    return () if loaded is None else tuple(loaded.simmim_instruction_sets().decode().split(","))


def in_use() -> str | None:
    """The instruction set that calls run on. None without a library."""
    loaded = library()
    return None if loaded is None else loaded.simmim_in_use().decode()


def openmp_threads() -> int | None:
    """OpenMP's own number of threads in the calling thread, as the library sees it. None without a library.

    The kernels ask OpenMP for `torch.get_num_threads()`, whatever this says. Where the library has PyTorch's OpenMP, as
    it should, `torch.set_num_threads` sets both.
    """
    loaded = library()
    return None if loaded is None else loaded.simmim_openmp_threads()
