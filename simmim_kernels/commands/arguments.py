"""The arguments of every command: what it takes, and what it says of what it cannot take.

simmim_kernels_entry reads this file by itself, to answer `--help` and to refuse what is no argument before PyTorch is
imported, which takes seconds. Nothing of the package is imported at the top, and by its whole name elsewhere.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch

CRITICS = ("separable", "mlp")
TRANSFORMS = ("rank", "standardise")
DEMOS = ("digits", "transfer")

_BACKEND = "SIMMIM_KERNELS_BACKEND"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in a line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from simmim_kernels.version import __version__

        print("simmim-kernels", __version__)
        parser.exit()


def parse(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    """The parser that is for what `argv` names, and its options; exits with 2 where it rejects them.

    `device` and `backend` are texts, or None for the default: choose_machine makes them what they stand for.
    """
    whole = parser()
    given = list(argv)
    # `demo` alone, or with options, is `demo digits`.
    if given[:1] == ["demo"] and given[1:2] not in (["-h"], ["--help"], *([name] for name in DEMOS)):
        given.insert(1, "digits")
    options = vars(whole.parse_args(given))
    command = options.pop("parser", whole)
    if options["command"] == "estimate" and options["y"] is None and options["y_columns"] is None:
        whole.error("estimate needs a file Y, or the columns of y in X's file: --y-columns NAME,NAME")
    return command, options


def choose_machine(command: argparse.ArgumentParser, options: dict[str, Any]) -> None:
    """Replaces the texts of `device` and `backend`, where there are any, by what they stand for, or exits with 2."""
    for name, choose in (("device", _device), ("backend", _backend)):
        if name in options:
            try:
                options[name] = choose(options[name])
            except argparse.ArgumentTypeError as error:
                command.error(f"argument --{name}: {error}")


def parser() -> argparse.ArgumentParser:
    whole = _Parser(
        prog="simmim-kernels",
        description="Mutual-information bounds and contrastive losses over all pairs, without the N x M score matrix.",
    )
    whole.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version and exit"
    )
    commands = whole.add_subparsers(dest="command", metavar="COMMAND")
    info = "versions, devices, backends, threads, and what would be fastest here"
    commands.add_parser("info", help=info, description=f"Prints {info}.")
    demo = commands.add_parser(
        "demo",
        help="digits, a manifold learned without labels (the default), or transfer between tasks",
        description="Without a name: digits, whose options may follow at once. Each demo has options of its own.",
    )
    demos = demo.add_subparsers(dest="demo", required=True)
    _add_digits_options(
        demos.add_parser("digits", help="learn a 10-dimensional manifold of handwritten digits without labels")
    )
    _add_transfer_options(
        demos.add_parser(
            "transfer", help="fine-tune on few labels: from scratch, from a source task, or with it simultaneously"
        )
    )
    _add_estimate_options(
        commands.add_parser(
            "estimate",
            help="mutual information between the paired rows of two files",
            description="Mutual information between the paired rows of two files: trained critics, read by several "
            "bounds on pairs that they never saw.",
            epilog="Quote InfoNCE, or Donsker-Varadhan where InfoNCE is within 2.5 nats of its ceiling: the table says "
            "which. The 95% interval covers the sampling of pairs and the spread of folds. It does not cover what the "
            "critics did not learn, by which a lower bound falls short: the Gaussian copula and KSG beside it, and the "
            "warnings, say where that is likely.",
        )
    )
    return whole


def _add_digits_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=_integer(0), default=400, metavar="N", help="training steps (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        type=_integer(2, 4000),
        default=1024,
        metavar="N",
        help="images a step, from 2 to 4000 (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_integer(0, 2**32 - 1),
        default=0,
        metavar="N",
        help="of the split, the encoder and the views (default: %(default)s)",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="train in all processes that torchrun started, each on its part of every batch",
    )
    _add_common_options(parser, Path("simmim-demo"), "manifold.png")


def _add_transfer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds",
        type=_integer(2),
        default=3,
        metavar="N",
        help="how many times, from seed 0 on, to draw labels, weights and batches; at least 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=_integer(0),
        default=100,
        metavar="N",
        help="training steps on a target, the same from scratch and from a source (default: %(default)s)",
    )
    _add_common_options(parser, Path("simmim-transfer"), "transfer.png")


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda or cuda:INDEX (default: cuda where there is one, else cpu)",
    )
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help=f"one that `info` lists (default: {_BACKEND}, or the first that can run the problem)",
    )
    # Whose name stands before what it refuses.
    parser.set_defaults(parser=parser)


def _add_common_options(parser: argparse.ArgumentParser, output: Path, plot: str) -> None:
    _add_machine_options(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=output,
        metavar="DIR",
        help=f"where {plot} and metrics.json go (default: %(default)s)",
    )


def _add_estimate_options(parser: argparse.ArgumentParser) -> None:
    kinds = "a .npy, .npz (FILE.npz:NAME), .csv, .tsv or .parquet file, a sample a row"
    parser.add_argument("x", metavar="X", help=kinds)
    parser.add_argument("y", metavar="Y", nargs="?", help=f"{kinds}; may be left out where --y-columns names X's")
    for name in ("x", "y"):
        parser.add_argument(
            f"--{name}-columns",
            metavar="NAMES",
            help="names, or numbers from 0, between commas (default: all"
            + (" that are not named elsewhere)" if name == "x" else ")"),
        )
    parser.add_argument(
        "--given",
        metavar="NAMES",
        help="columns of X's file, or a file, as Z: conditional information I(X; Y | Z), a difference of two estimates",
    )
    parser.add_argument(
        "--groups",
        metavar="NAME",
        help="a column of X's file, or a file of one: rows of one group, as of one subject, stay in one fold",
    )
    parser.add_argument(
        "--blocks",
        type=_integer(3),
        metavar="N",
        help="of consecutive rows, as of a time series, which stay in one fold each",
    )
    parser.add_argument(
        "--permutations",
        type=_integer(0),
        default=0,
        metavar="N",
        help="orders of the held-out y, for a p-value of independence (default: %(default)s)",
    )
    parser.add_argument(
        "--delimiter",
        type=_delimiter,
        metavar="CHAR",
        help="between the cells of a .csv (default: what line 1 has most)",
    )
    parser.add_argument(
        "--drop-missing", action="store_true", help="leave out rows with a missing value, instead of refusing them"
    )
    parser.add_argument(
        "--folds",
        type=_integer(2),
        default=5,
        metavar="N",
        help="critics, each trained without a fold of the rows and read on it (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=_integer(0), default=0, metavar="N", help="of the folds and the first critic; the next has N + 1"
    )
    parser.add_argument(
        "--critic",
        choices=CRITICS,
        default=CRITICS[0],
        help="two networks compared by distance, or one network of every pair, slower (default: %(default)s)",
    )
    parser.add_argument(
        "--transform",
        choices=TRANSFORMS,
        default="rank",
        help="of each column: normal quantiles of ranks, or zero mean and unit deviation (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=_integer(2), metavar="N", help="pairs a training step (default: 512, or 128 with mlp)"
    )
    parser.add_argument(
        "--max-steps",
        type=_integer(0),
        default=2000,
        metavar="N",
        help="of a training stage that does not stop by itself (default: %(default)s)",
    )
    _add_machine_options(parser)
    parser.add_argument("--bits", action="store_true", help="report bits instead of nats")
    parser.add_argument(
        "--pointwise", metavar="PATH", help="write the information of each pair there, in nats, as .npy"
    )
    parser.add_argument(
        "--json", metavar="PATH", help="write the results there as JSON, or to standard output alone where it is -"
    )


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    span = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {span}, got {text!r}") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {span}, got {value}")
        return value

    return parse


def _delimiter(text: str) -> str:
    text = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if len(text) != 1 or text in '"\n\r':
        raise argparse.ArgumentTypeError(f"must be one character, got {text!r}")
    return text


def _device(text: str | None) -> "torch.device":
    import torch

    count = torch.cuda.device_count()
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:INDEX, got {text!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:INDEX, got {text!r}")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise argparse.ArgumentTypeError(f"must be available, got {text!r} with {count} CUDA devices")
    return device


def _backend(text: str | None) -> str | None:
    from simmim_kernels.backends import ENVIRONMENT_VARIABLE, backends

    wanted = os.environ.get(ENVIRONMENT_VARIABLE) or None if text is None else text
    if wanted is None:
        return None
    found = backends()
    got = repr(wanted) + (f" from {ENVIRONMENT_VARIABLE}" if text is None else "")
    if wanted not in found:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(found)}; got {got}")
    if found[wanted] != "available":
        raise argparse.ArgumentTypeError(f"must be available, got {got}: {found[wanted]}")
    return wanted
