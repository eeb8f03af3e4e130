"""The native CPU library: found, loaded and declared for ctypes as csrc/cpu/simmim_cpu.h says.

What a pointer points to must outlive the call, and no longer.
"""

import ctypes
import os
import warnings
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from ..shared_library import Files, Unusable, open_library

# SIMMIM_INTERFACE of csrc/cpu/simmim_cpu.h, which this file follows.
_INTERFACE = 11
# SIMMIM_ROW_STEP
ROW_STEP = 96
_LIBRARY = Path(__file__).with_name("_native.so")
# Names the instruction set that calls run on, in place of the best of those that have been checked on hardware.
CHOICE = "SIMMIM_KERNELS_INSTRUCTIONS"
# The one that has not.
NOT_CHECKED = "avx512_amx"
# What the build leaves beside it: a digest of it, or why there is none.
_DIGEST = Path(__file__).with_name("_native_digest.txt")
_REASON = Path(__file__).with_name("_native_unavailable.txt")


class ProblemStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("n", "m", "d")),
        *((name, c_void_p) for name in ("x", "y")),
        *((name, c_int64) for name in ("x_row", "x_column", "y_row", "y_column")),
        *((name, c_int32) for name in ("dtype", "function", "joint", "symmetric", "threads", "layers", "coarse")),
        *((name, c_double) for name in ("scale", "lo", "hi")),
        *((name, c_void_p) for name in ("row_bias", "col_bias", "positives", "row_ids", "col_ids")),
        *((name, c_int64) for name in ("ids", "grouped")),
        *((name, c_void_p) for name in ("weight", "weight_bias", "output")),
        ("output_bias", c_double),
        *((name, c_void_p) for name in ("guide_x", "guide_y", "guide_limit")),
        ("guide_d", c_int64),
    )


class Values(ctypes.Structure):
    _fields_ = tuple(
        (name, c_void_p) for name in ("rows", "columns", "joint", "entropies", "scores", "softmax_entropies")
    )


class Gradients(ctypes.Structure):
    _fields_ = tuple(
        (name, c_void_p)
        for name in (
            *("rows", "columns", "grad_rows", "grad_columns", "joint", "grad_entropies", "scores"),
            *("dx", "dy", "drow", "dcol", "dscale", "total"),
            *("dweight", "dweight_bias", "doutput", "doutput_bias"),
        )
    )


class EntropySum(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("weights", "value")),
        ("factor", c_double),
        *((name, c_int32) for name in ("by_row", "by_column")),
        ("rows_at_once", c_int64),
    )


def loaded() -> ctypes.CDLL | None:
    """The library, or None for the reason that `why_not` gives."""
    return _load()[0]


def why_not() -> str | None:
    """Why there is no library, in a line; None where there is one."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    files, interface = Files(_LIBRARY, _DIGEST, _REASON), ("simmim_interface", _INTERFACE)
    try:
        found = open_library(files, "native", "not built: pip install -e . does", interface, _declare)
    except Unusable as reason:
        return None, str(reason)
    choice = os.environ.get(CHOICE)
    if choice and found.simmim_choose(choice.encode()) != 0:
        running = found.simmim_instruction_sets().decode().replace(",", ", ")
        wrong = f"{CHOICE} must name one of {running}, which this processor runs; got {choice!r}"
        warnings.warn(f"the native kernels are not used: {wrong}", stacklevel=2)
        return None, wrong
    return found, None


def _declare(loaded: ctypes.CDLL) -> None:
    loaded.simmim_forward.argtypes = (POINTER(ProblemStruct), POINTER(Values))
    loaded.simmim_forward.restype = c_int
    loaded.simmim_backward.argtypes = (POINTER(ProblemStruct), POINTER(Gradients))
    loaded.simmim_backward.restype = c_int
    loaded.simmim_cross_entropy_sum.argtypes = (POINTER(ProblemStruct), POINTER(EntropySum), POINTER(Gradients))
    loaded.simmim_cross_entropy_sum.restype = c_int
    for names in (loaded.simmim_built_for, loaded.simmim_instruction_sets, loaded.simmim_in_use):
        names.argtypes, names.restype = (), c_char_p
    loaded.simmim_choose.argtypes = (c_char_p,)
    loaded.simmim_choose.restype = c_int
    for counts in (loaded.simmim_openmp, loaded.simmim_openmp_threads):
        counts.argtypes, counts.restype = (), c_int


def built_for() -> tuple[str, ...]:
    """The instruction sets that the library was built for, best first, run here or not. Empty without a library."""
    found = loaded()
    return () if found is None else tuple(found.simmim_built_for().decode().split(","))


def instruction_sets() -> tuple[str, ...]:
    """Those that the library was built for and this processor runs, best first. Empty without a library."""
    found = loaded()
    return () if found is None else tuple(found.simmim_instruction_sets().decode().split(","))


def in_use() -> str | None:
    """The instruction set that calls run on. None without a library."""
    found = loaded()
    return None if found is None else found.simmim_in_use().decode()


def has_openmp() -> bool:
    """Whether the library was built with OpenMP. Without, calls run on one thread. False without a library."""
    found = loaded()
    return found is not None and found.simmim_openmp() != 0


def openmp_threads() -> int | None:
    """OpenMP's own number of threads in the calling thread, as the library sees it; 1 where that was built without.

    None without a library. The kernels ask OpenMP for `torch.get_num_threads()`, whatever this says. Where the library
    has PyTorch's OpenMP, as it should, `torch.set_num_threads` sets both.
    """
    found = loaded()
    return None if found is None else found.simmim_openmp_threads()
