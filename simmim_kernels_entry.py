"""The console script `simmim-kernels`, outside the package for what must be done before PyTorch is imported.

`python -m simmim_kernels` is the same command without that: Python imports the package, and with it PyTorch, before any
line of the command runs.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path

INTERRUPTED = 130  # what a shell calls the status of a program that Ctrl-C ended

# What says how long a thread waits spinning for another, in every OpenMP that PyTorch comes with.
_WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def main() -> int:
    if sys.argv[1:] == ["--version"]:
        from importlib import metadata

        print("simmim-kernels", metadata.version("simmim_kernels"))
        return 0
    _refuse_what_is_no_argument()
    # libgomp reads this when PyTorch loads it. By default its threads spin for milliseconds, which is a scheduler's
    # slice: where other programs want the cores too, they spin in the place of the thread that they wait for, and a
    # training of small steps takes ten times its share. Once a process has more threads than cores libgomp itself
    # spins as little: 1000 times where threads are to wait actively.
    if not any(name in os.environ for name in _WAITS):
        os.environ["GOMP_SPINCOUNT"] = "1000"
    # While PyTorch is imported an interrupt could be raised anywhere, and there is nothing to clean up after.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, _leave)
    from simmim_kernels.commands.command_line import main as command

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = command()
    except KeyboardInterrupt:
        status = INTERRUPTED
    if interruptible:
        signal.signal(signal.SIGINT, _leave)
    return status


def _refuse_what_is_no_argument() -> None:
    """Exits with 2, or with 0 after --help, where the file of the arguments says so; the package stays unimported."""
    package = importlib.util.find_spec("simmim_kernels")
    if package is None or package.origin is None:
        return  # the import says what is wrong
    file = Path(package.origin).parent / "commands" / "arguments.py"
    spec = importlib.util.spec_from_file_location("simmim_kernels_arguments", file)
    assert spec is not None
    assert spec.loader is not None
    arguments = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(arguments)
    arguments.parse(sys.argv[1:])


def _leave(*_: object) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
