"""Files that a command writes: whether it can is asked before the work, and they appear whole or not at all."""

import os
import tempfile
from pathlib import Path


class Unwritable(OSError):
    """What a command was to write into cannot be written to; the message is for its user."""


def check_folder(path: Path) -> None:
    """Makes the folder where there is none. Raises Unwritable."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror
        raise Unwritable(f"{path} cannot be written into: {reason}") from error


def check_file(path: Path) -> None:
    """Raises Unwritable."""
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if path.exists():
            with path.open("ab"):
                return
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise Unwritable(f"{path} cannot be written: {error.strerror}") from error


def write(path: Path, content: bytes) -> None:
    """Writes a file, or replaces one, at once: who is interrupted leaves nothing, or what was there before."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(content)  # /dev/null, or a pipe, is not to be replaced
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
