"""What is installed, what it can run on, and which backends are available."""

import platform
from importlib import metadata

import torch

from ..backends import BACKENDS, backends
from ..version import __version__


def info() -> str:
    """Versions, devices and backends as aligned lines of text."""
    sections = (_versions(), _devices(), _backends())
    width = max(len(name) for section in sections for name in section)
    return "\n\n".join(
        "\n".join(f"{name:<{width}}  {value}" for name, value in section.items()) for section in sections
    )


def _versions() -> dict[str, str]:
    installed = {name: _version(name) for name in ("torch", "numpy", "triton")}
    return {"simmim_kernels": __version__, "python": platform.python_version(), **installed}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _backends() -> dict[str, str]:
    found = backends()
    for name, state in found.items():
        reason = BACKENDS[name].not_by_default()
        if state == "available" and reason is not None:
            found[name] = f"available where asked for by name: {reason}"
    return found


def _devices() -> dict[str, str]:
    # No run on a GPU is recorded for any backend yet, and `info` is where a user looks for that.
    found = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    if not torch.cuda.is_available():
        return {**found, "cuda": "not available"}
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        found[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}; unverified"
    return found
