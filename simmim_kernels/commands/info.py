"""What is installed, what it can run on, which backends are available, and what would be fastest here."""

import os
import platform
import re
import shutil
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import torch

from ..backends import BACKENDS, ENVIRONMENT_VARIABLE, CannotRun, asked_for, backends, select
from ..backends.cuda import library as cuda_library
from ..backends.native import library
from ..problem import Problem
from ..version import __version__

# By the kind of device. It is what calls take by themselves where it can run and has been verified.
_FASTEST = {"cpu": "native", "cuda": "triton"}
_ON_GPUS = ("cuda", "triton")
# In the order in which PyTorch heeds them.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# The files that Linux has mapped into this process, and GNU's, LLVM's and Intel's OpenMP among them.
_MAPS = Path("/proc/self/maps")
_OPENMP = re.compile(r"/\S.*/lib(?:gomp|omp|iomp5)[-.][^/\n]*")


def info() -> str:
    """Sections of aligned lines, each a name and what there is to say of it."""
    sections = (_versions(), _machine(), _library(), _backends(), _fastest())
    width = max(len(name) for section in sections for name in section) + 2
    return "\n\n".join("\n".join(_line(*entry, width) for entry in section.items()) for section in sections)


def _line(name: str, value: str, indent: int) -> str:
    """Wrapped where there is a terminal to wrap for, so that elsewhere a line can be searched for."""
    line = f"{name:<{indent}}{value}"
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return line
    return textwrap.fill(
        line,
        max(shutil.get_terminal_size().columns, indent + 20),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )


def _versions() -> dict[str, str]:
    installed = {name: _version(name) for name in ("torch", "numpy", "triton")}
    return {"simmim_kernels": __version__, "python": platform.python_version(), **installed}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, str]:
    # No run on a GPU is recorded for any backend yet, and `info` is where a user looks for that.
    found = {"cpu": f"{platform.machine()}, {_cores()} cores", "threads": _threads()}
    if not torch.cuda.is_available():
        return {**found, "cuda": "not available"}
    for index in range(torch.cuda.device_count()):
        try:
            major, minor = torch.cuda.get_device_capability(index)
            state = f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}; unverified"
        except RuntimeError as error:  # of a device that the driver lists and cannot use
            state = f"cannot be used: {_first_line(error)}"
        found[f"cuda:{index}"] = state
    return found


def _cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads() -> str:
    said, openmp = f"PyTorch {torch.get_num_threads()}", library.openmp_threads()
    if library.has_openmp():
        said += f", which the native kernels take too; OpenMP by itself {openmp}"
    elif openmp is not None:
        said += f"; the native kernels {openmp}, built without OpenMP"
    given = [f"{name}={os.environ[name]}" for name in _THREAD_VARIABLES if os.environ.get(name)]
    return f"{said}; {', '.join(given)}" if given else said


def _library() -> dict[str, str]:
    # Why there is none is what the backend says.
    of_cuda = cuda_library.built_for()
    gpu = {} if of_cuda is None else {"cuda library": f"built with {of_cuda}"}
    reason = library.why_not()
    if reason is not None:
        return {"library": reason, **gpu}
    built, here = (", ".join(names) for names in (library.built_for(), library.instruction_sets()))
    said = f"{library.in_use()}; this processor runs {here}"
    if library.instruction_sets()[0] == library.NOT_CHECKED != library.in_use():
        said += f" ({library.NOT_CHECKED}, which has not been checked on hardware, where {library.CHOICE} names it)"
    without = "" if library.has_openmp() else "; built without OpenMP: one thread"
    return {
        "library": f"built for {built}{without}",
        "instructions": said,
        "openmp": _openmp(),
        **gpu,
    }


def _openmp() -> str:
    """The runtimes in this process, once PyTorch and the native library are."""
    if not _MAPS.exists():
        return f"what of it is loaded is not known on {platform.system()}"
    found = sorted(set(_OPENMP.findall(_MAPS.read_text(errors="replace"))))
    said = ", ".join(found) or "none is loaded"
    if len(found) < 2:
        return said
    return f"{said}: {len(found)} different ones, each with threads of its own, which get in each other's way"


def _backends() -> dict[str, str]:
    found = backends()
    for name, state in found.items():
        if state == "available":
            device = torch.device("cuda", 0) if name in _ON_GPUS else torch.device("cpu")
            reason = BACKENDS[name].not_by_default(device)
            if reason is not None:
                found[name] = f"available where asked for by name: {reason}"
    return found


def _fastest() -> dict[str, str]:
    """By device: what would be fastest there, and why calls do not run on it, or do not run as fast as they could."""
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    return {f"on {device}": _fastest_on(device) for device in devices}


def _fastest_on(device: torch.device) -> str:
    fastest = _FASTEST[device.type]
    try:
        one = torch.ones(1, 1, device=device)
        problem = Problem(one, one, [one.squeeze()])
        runs = select(problem)
    except (CannotRun, ValueError) as error:
        return f"{fastest}, but nothing runs: {_first_line(error)}"
    except RuntimeError as error:
        return f"cannot be used: {_first_line(error)}"
    if runs == "native" and not library.has_openmp():
        return f"calls run on native{_idle_cores()}"
    if runs == fastest:
        return f"{fastest} is the fastest, and calls run on it{_idle_cores() if device.type == 'cpu' else ''}"
    module, asked = BACKENDS[fastest], asked_for()[0]
    reason = module.unavailable() or module.supports(problem) or module.not_by_default(device)
    if reason is None or asked is not None:
        reason = f"{ENVIRONMENT_VARIABLE}={asked}"
    return f"{fastest} would be the fastest, but calls run on {runs}: {reason}"


def _idle_cores() -> str:
    threads, cores = torch.get_num_threads(), _cores()
    given = next((f" by {name}" for name in _THREAD_VARIABLES if os.environ.get(name)), "")
    if not library.has_openmp():
        threads, given = 1, ", built without OpenMP"
    if threads == cores:
        return ""
    few = f"{cores - threads} of {cores} cores stay idle" if threads < cores else f"that is more than the {cores} cores"
    return f"; it has {threads} thread{'s' if threads > 1 else ''}{given}: {few}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
