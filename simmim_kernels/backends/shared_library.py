"""How the package's own libraries are opened: found beside a backend, whole, built from these sources, and declared.

Calls through ctypes.CDLL release the GIL. A pointer is an address, such as `tensor.data_ptr()`, or None.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401  loads its OpenMP, which the native library then takes too: one pool of threads for both

from .integrity import Damaged, digest


class Unusable(Exception):
    """Says why there is no library, in a line."""


class Files(NamedTuple):
    """A library, and what its build leaves beside it: a digest of it, or why there is none."""

    library: Path
    digest: Path
    reason: Path


def open_library(
    files: Files, name: str, absent: str, interface: tuple[str, int], declare: Callable[[ctypes.CDLL], None]
) -> ctypes.CDLL:
    """The library called `name`, declared for ctypes. Raises Unusable.

    `interface` is the function that counts the changes of the library's header, and the count that the caller follows.
    `absent` says what is to be done where there is none, and the build left no reason.
    """
    if not files.library.exists():
        # The lines after the first are the compiler's.
        raise Unusable(f"no {name} library: {_first_line(files.reason) or absent}")
    try:
        own, built = digest(files.library.read_bytes()), _first_line(files.digest)
        if own and built and own != built:
            raise Damaged("its contents are not those that were built")
        found = ctypes.CDLL(str(files.library))
        version, expected = interface
        if getattr(found, version)() != expected:
            raise Unusable(f"the {name} library was built from other sources: build it again")
        declare(found)
    except Damaged as damage:
        raise Unusable(f"the {name} library is damaged: {damage}: build it again") from None
    except UnicodeDecodeError as error:
        said = error.object.decode(errors="backslashreplace")
        raise Unusable(f"the {name} library cannot be loaded: {said}") from None
    except OSError as error:
        # The loader quotes names of the library. Where damage made them no text, Python 3.10 leaves the message empty,
        # later ones raise what is caught above, and those after them write what no encoding takes.
        said = str(error).encode(errors="backslashreplace").decode() or "the loader's message is no text"
        raise Unusable(f"the {name} library cannot be loaded: {said}") from None
    except AttributeError as error:  # a symbol that ctypes does not find
        raise Unusable(f"the {name} library is another one: {error}") from None
    return found


def _first_line(path: Path) -> str | None:
    """None where there is no such file, or nothing in it."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return None
    return lines[0].strip() or None
