"""The CUDA library: found, loaded and declared for ctypes as csrc/cuda/simmim_cuda.h says.

What a pointer points to, on the device, must stay until the work that a call queued is done, as PyTorch's allocator
sees to for work on the current stream.
"""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from ..shared_library import Files, Unusable, open_library

# SIMMIM_CUDA_INTERFACE of csrc/cuda/simmim_cuda.h, which this file follows.
_INTERFACE = 4
_LIBRARY = Path(__file__).with_name("_cuda.so")
# What the build leaves beside it, or in its place.
_DIGEST = Path(__file__).with_name("_cuda_digest.txt")
_REASON = Path(__file__).with_name("_cuda_unavailable.txt")


class ProblemStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("n", "m", "d")),
        *((name, c_void_p) for name in ("x", "y")),
        *((name, c_int64) for name in ("x_row", "y_row")),
        *((name, c_void_p) for name in ("scale", "row_bias", "col_bias", "positives")),
        *((name, c_int64) for name in ("first_row", "first_column")),
        *((name, c_void_p) for name in ("row_ids", "col_ids")),
        *((name, c_int64) for name in ("row_ids_row", "col_ids_row")),
        *((name, c_float) for name in ("lo", "hi")),
        *((name, c_int32) for name in ("operand", "function", "joint", "ids", "grouped", "device")),
        ("stream", c_void_p),
        ("variant", c_int32),
    )


class GradientStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("row_reference", "row_upstream", "col_reference", "col_upstream", "weights")),
        ("stride", c_int64),
        *((name, c_void_p) for name in ("sums", "weight_sums", "workspace")),
        ("adds", c_int32),
    )


class EntropiesStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("rows", "columns", "scores")),
        ("known", c_int32),
        *((name, c_void_p) for name in ("row_entropies", "col_entropies", "row_upstream", "col_upstream")),
        *((name, c_int64) for name in ("row_upstream_step", "col_upstream_step")),
        ("factor", c_float),
        ("weights", c_int32),
        *((name, c_void_p) for name in ("value", "terms", "row_gradient", "col_gradient", "joint_gradient", "unit")),
    )


class EndsStruct(ctypes.Structure):
    _fields_ = (
        ("totals", c_void_p),
        ("count", c_int64),
        *((name, c_void_p) for name in ("own", "other")),
        *((name, c_int64) for name in ("own_row", "other_row")),
        *((name, c_void_p) for name in ("partners", "joint")),
        ("joints", c_int64),
        ("gradient", c_void_p),
        ("wide", c_int32),
        *((name, c_void_p) for name in ("bias", "dots")),
    )


class GradientsStruct(ctypes.Structure):
    _fields_ = (
        ("d", c_int64),
        *((name, c_void_p) for name in ("scale", "unit", "upstream")),
        *((name, EndsStruct) for name in ("rows", "columns")),
        *((name, c_void_p) for name in ("scale_gradient", "dots")),
        ("dot_count", c_int64),
        *((name, c_int32) for name in ("operand", "device")),
        ("stream", c_void_p),
    )


def loaded() -> ctypes.CDLL | None:
    """The library, or None for the reason that `why_not` gives."""
    return _load()[0]


def why_not() -> str | None:
    """Why there is no library, in a line; None where there is one."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    files, interface = Files(_LIBRARY, _DIGEST, _REASON), ("simmim_cuda_interface", _INTERFACE)
    try:
        return open_library(files, "CUDA", "not built: see docs/cuda-wheels.md", interface, declare), None
    except Unusable as reason:
        return None, str(reason)


def built_for() -> str | None:
    """The CUDA version that the library was built with, and the architectures that it has code for."""
    found = loaded()
    if found is None:
        return None
    return f"CUDA {_version(found.simmim_cuda_runtime())}, {' '.join(architectures())}"


def architectures() -> tuple[str, ...]:
    """That the library has code for, as simmim_cuda.h names them; none without a library."""
    found = loaded()
    return () if found is None else tuple(found.simmim_cuda_architectures().decode().split())


def variants() -> list[str]:
    """Names of the kernels that a problem may ask for; none without a library."""
    found = loaded()
    return [] if found is None else found.simmim_cuda_variants().decode().split(";")


def has_code_for(capability: tuple[int, int]) -> bool:
    """Whether something of the library runs on devices of a compute capability."""
    return any(_runs_on(name, capability) for name in architectures())


def _runs_on(name: str, capability: tuple[int, int]) -> bool:
    kind, number = name.split("_")
    if number.endswith("a"):  # that one alone
        return divmod(int(number[:-1]), 10) == capability
    made_for = divmod(int(number), 10)
    # Code runs on later devices of its generation, PTX on all later ones.
    return made_for <= capability and (kind == "compute" or made_for[0] == capability[0])


def without_driver() -> str | None:
    """Why the machine's driver does not run the library, in a line. Asks the driver for its version and no more."""
    found = loaded()
    if found is None:
        return None
    driver, runtime = found.simmim_cuda_driver(), found.simmim_cuda_runtime()
    if driver // 1000 >= runtime // 1000:
        return None
    has = f"the driver is for {_version(driver)}" if driver else "there is no driver"
    needs = f"built with CUDA {_version(runtime)}, needs a driver for CUDA {runtime // 1000}.0 or later"
    return f"the CUDA library, {needs}: {has}"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def declare(library: ctypes.CDLL) -> None:
    library.simmim_cuda_workspace.argtypes, library.simmim_cuda_workspace.restype = (c_int64, c_int64), c_int64
    for names in (library.simmim_cuda_variants, library.simmim_cuda_architectures, library.simmim_cuda_message):
        names.argtypes, names.restype = (), c_char_p
    for versions in (library.simmim_cuda_runtime, library.simmim_cuda_driver):
        versions.argtypes, versions.restype = (), c_int
    library.simmim_cuda_hopper.argtypes, library.simmim_cuda_hopper.restype = (c_int,), c_int
    library.simmim_cuda_statistics.argtypes = (POINTER(ProblemStruct), c_void_p, c_void_p, c_void_p)
    library.simmim_cuda_weights.argtypes = (POINTER(ProblemStruct), POINTER(GradientStruct))
    library.simmim_cuda_parts.argtypes, library.simmim_cuda_parts.restype = (c_int64, c_int64, c_int64), c_int64
    library.simmim_cuda_products.argtypes = (
        *(POINTER(ProblemStruct), POINTER(GradientStruct)),
        *(c_int32, c_void_p, c_void_p),
    )
    library.simmim_cuda_cross_entropies.argtypes = (POINTER(ProblemStruct), POINTER(EntropiesStruct), c_void_p)
    library.simmim_cuda_finish.argtypes = (POINTER(GradientsStruct),)
    for calls in (
        library.simmim_cuda_statistics,
        library.simmim_cuda_weights,
        library.simmim_cuda_products,
        library.simmim_cuda_cross_entropies,
        library.simmim_cuda_finish,
    ):
        calls.restype = c_int
