"""The command line: what it prints, where and how, what it refuses, and how it ends."""

import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.table import Table

import simmim_kernels_entry as entry
from simmim_kernels import backends, estimation
from simmim_kernels.backends import ENVIRONMENT_VARIABLE
from simmim_kernels.backends.native import library
from simmim_kernels.commands import arguments as arguments_of_commands
from simmim_kernels.commands import info
from simmim_kernels.commands.command_line import main
from simmim_kernels.commands.files import check_file, write
from simmim_kernels.commands.output import open_console, say, show
from simmim_kernels.commands.progress import stage, track
from simmim_kernels.version import __version__

ENTRY = Path(entry.__file__)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "SIMMIM_KERNELS_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_alone_it_prints_its_help(capsys):
    assert main([]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: simmim-kernels ")
    assert {line.split()[0] for line in printed.out.splitlines() if line.startswith("    ")} >= {
        "info",
        "demo",
        "estimate",
    }
    assert printed.err == ""


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"simmim-kernels {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["abacus"],
        ["info", "more"],
        ["estimate", "x.npy"],
        ["demo", "--steps", "a\nb"],
        ["estimate", "x", "y", "--folds"],
    ],
)
def test_wrong_arguments_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("simmim-kernels")
    assert printed.err.count("\n") == 1


def test_a_backend_of_the_environment_is_checked_like_an_argument(monkeypatch, capsys):
    monkeypatch.setenv("SIMMIM_KERNELS_BACKEND", "abacus")
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", "x.npy", "y.npy"])
    assert stopped.value.code == 2
    assert (
        "--backend: must be one of cuda, triton, native, tiled, reference; got 'abacus' from SIMMIM_KERNELS_BACKEND\n"
        in (capsys.readouterr().err)
    )


def test_a_reader_that_went_away_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main([]) == 1


# The console script's module beside a package of one's own making, in which no PyTorch takes seconds to import.


@pytest.fixture
def run_entry(tmp_path):
    """Starts the console script's module with this as the package's __init__ and its command line."""

    def start(*arguments, package="", command_line="def main(): return 0", **environment):
        commands = tmp_path / "simmim_kernels" / "commands"
        commands.mkdir(parents=True)
        (commands.parent / "__init__.py").write_text(package)
        (commands / "__init__.py").touch()
        (commands / "command_line.py").write_text(command_line)
        (commands / "arguments.py").write_text(Path(arguments_of_commands.__file__).read_text())
        (tmp_path / ENTRY.name).write_text(ENTRY.read_text())
        kept = {name: value for name, value in os.environ.items() if name not in entry._WAITS}
        return subprocess.Popen(
            [sys.executable, tmp_path / ENTRY.name, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**kept, **environment},
            # A runner in a shell's background ignores SIGINT, and what it starts would as well.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return start


@pytest.mark.parametrize("where", ["package", "command_line"])
def test_ctrl_c_is_status_130_without_a_word(run_entry, where):
    waits = "print('here', flush=True)\nimport time\ntime.sleep(60)\n"
    run = run_entry(
        **{where: waits if where == "package" else f"def main():\n {waits.replace(chr(10), chr(10) + ' ')}"}
    )
    assert run.stdout.readline() == "here\n"
    run.send_signal(signal.SIGINT)
    assert run.communicate(timeout=30) == ("", "")
    assert run.returncode == 130


def test_the_commands_status_is_the_scripts(run_entry):
    run = run_entry(command_line="def main(): return 3")
    assert run.communicate(timeout=30) == ("", "")
    assert run.returncode == 3


@pytest.mark.parametrize(
    ("environment", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_openmp_waits_briefly_unless_the_environment_says_how(run_entry, environment, spins):
    run = run_entry(package="import os\nprint(os.environ.get('GOMP_SPINCOUNT'))", **environment)
    assert run.communicate(timeout=30) == (f"{spins}\n", "")


def test_version_needs_no_pytorch(run_entry):
    run = run_entry("--version", package="raise SystemExit('imported')")
    assert run.communicate(timeout=30) == (f"simmim-kernels {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["estimate", "x.npy", "y.npy", "--nonsense"], 2, "error: unrecognized arguments: --nonsense"),
        (["estimate", "x.npy"], 2, "estimate needs a file Y"),
        (["demo", "--seed", "none"], 2, "argument --seed: must be an integer"),
        (["--help"], 0, "usage: simmim-kernels"),
        (["estimate", "--help"], 0, "--permutations"),
    ],
)
def test_what_is_no_argument_is_refused_before_pytorch(run_entry, arguments, status, said):
    """Where the environment names a backend, too, which only the package can check."""
    run = run_entry(*arguments, package="raise SystemExit('imported')", SIMMIM_KERNELS_BACKEND="tiled")
    out, err = run.communicate(timeout=30)
    assert run.returncode == status
    assert said in (err if status else out)
    assert "imported" not in out + err


def test_the_parser_offers_what_an_estimate_takes():
    """Which it cannot import: that takes PyTorch."""
    assert arguments_of_commands.CRITICS == estimation.CRITICS
    assert tuple(estimation.TRANSFORMS) == arguments_of_commands.TRANSFORMS
    assert arguments_of_commands._BACKEND == ENVIRONMENT_VARIABLE


# What is printed.


def small_table() -> Table:
    table = Table(title="Title of some length, in words", caption="a caption that is longer than any narrow table is")
    for name, side in (("bound", "left"), ("95% interval", "right"), ("what it is", "left")):
        table.add_column(name, justify=side)
    table.add_row("Donsker-Varadhan", "0.897 to 0.974", "lower bound, biased upward by the log of a sample mean")
    table.add_row("", "10.897 to 10.974", "neither a lower nor an upper bound")
    return table


@pytest.mark.parametrize("columns", [30, 40, 50, 60, 80, 200])
def test_no_width_cuts_a_word_of_a_table(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    table = small_table()
    show(open_console(), table)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= columns
    said = " ".join(printed.replace("│", " ").replace("┃", " ").split())
    for column in table.columns:
        for cell in column.cells:
            assert all(word in said for word in (cell if column.justify == "right" else cell.split()) if word.strip())
    # Numbers are not broken, be they in a table or in a line of their own.
    assert len([line for line in lines if "0.897 to 0.974" in line]) == 1
    assert ("┏" in printed) == (columns > 40)
    # In lines of their own the rows of a group repeat its name.
    assert printed.count("Donsker-Varadhan") == (1 if columns > 40 else 2)


def test_texts_wrap_between_words_and_paths_stay_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/folder/of-a-name/that/is-wider/than/the-terminal[red]:smile:"
    say(open_console(), f"- wrote manifold.png and metrics.json, both of them, to {path}", indent="  ")
    first, second, third = capsys.readouterr().out.splitlines()
    assert (first, second, third) == ("- wrote manifold.png and metrics.json,", "  both of them, to", f"  {path}")


def show_all_there_is(console):
    with stage(console, "doing"):
        pass
    list(track(range(3), 3, console, "counting", "numbers", str, lambda last: f"up to {last}"))
    show(console, small_table())
    say(console, "Warning: something", style="yellow")


@pytest.mark.parametrize(
    ("environment", "terminal", "colours", "motion"),
    [
        ({}, False, False, False),
        ({}, True, True, True),
        ({"NO_COLOR": "1"}, True, False, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False, False),
        ({"FORCE_COLOR": "1"}, False, True, False),
        ({"TERM": "dumb"}, True, False, False),
    ],
)
def test_colour_and_motion_are_what_the_environment_wants(environment, terminal, colours, motion, monkeypatch):
    for name, value in {**environment, "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    console = open_console()
    assert console.width == 60
    show_all_there_is(console)
    printed = stream.getvalue()
    # Of colours, bold and italic the escape sequences end in m; those that move the cursor and hide it do not.
    assert (
        "m" in {printed[at:].lstrip("0123456789;[\x1b")[:1] for at in range(len(printed)) if printed[at] == "\x1b"}
    ) == (colours)
    assert ("\x1b[2K" in printed) == motion
    if not colours and not motion:
        assert "\x1b" not in printed
        assert "\r" not in printed
        assert printed.startswith("doing: 0 s\ncounting: 3 numbers, up to 2, 0 s\n")
        assert all(line.strip() for line in printed.splitlines())


def test_json_on_standard_output_is_alone_there(monkeypatch, capsys, tmp_path):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).standard_normal((50, 1)))
    quick = ["--folds", "2", "--max-steps", "20", "--device", "cpu", "--json", "-"]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["estimate", "x.npy", "x.npy", *quick]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 50
    assert "fold 2 of 2" in terminal.getvalue()


# Files.


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupted(self, target):
        raise KeyboardInterrupt

    path = tmp_path / "metrics.json"
    path.write_bytes(b"before")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(path, b"after")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("metrics.json", b"before")]
    write(path, b"after")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("metrics.json", b"after")]


def test_links_and_devices_are_written_through_and_not_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    write(link, b"content")
    assert link.is_symlink()
    assert target.read_bytes() == b"content"
    null = Path(os.devnull)
    check_file(null)
    write(null, b"content")
    assert not null.is_file()


# info.


def lines_of_info(capsys) -> dict[str, str]:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    width = printed.index("  ", printed.index("simmim_kernels")) + 2
    return {line[:width].strip(): line[width:] for line in printed.splitlines() if line}


def test_info_lists_every_backend(capsys):
    lines = lines_of_info(capsys)
    for name, state in backends().items():
        assert lines[name].startswith(state)


def test_info_names_instruction_sets_and_threads(capsys, monkeypatch):
    found = {"built_for": ("avx512", "avx2", "portable"), "instruction_sets": ("avx2", "portable")}
    found |= {"in_use": "avx2", "openmp_threads": torch.get_num_threads(), "has_openmp": True, "why_not": None}
    for name, value in found.items():
        monkeypatch.setattr(library, name, lambda value=value: value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(info, "_cores", lambda: torch.get_num_threads() + 3)
    monkeypatch.setattr(info.BACKENDS["native"], "unavailable", lambda: None)
    lines = lines_of_info(capsys)
    assert lines["library"] == "built for avx512, avx2, portable"
    assert lines["instructions"] == "avx2; this processor runs avx2, portable"
    threads = torch.get_num_threads()
    assert lines["threads"] == (
        f"PyTorch {threads}, which the native kernels take too; OpenMP by itself {threads}; OMP_NUM_THREADS=1"
    )
    assert lines["on cpu"].startswith("native is the fastest, and calls run on it; it has ")
    assert lines["on cpu"].endswith(f"by OMP_NUM_THREADS: 3 of {threads + 3} cores stay idle")


def test_info_says_that_the_library_has_no_openmp(capsys, monkeypatch):
    found = {"built_for": ("portable",), "instruction_sets": ("portable",), "in_use": "portable", "openmp_threads": 1}
    for name, value in {**found, "has_openmp": False, "why_not": None}.items():
        monkeypatch.setattr(library, name, lambda value=value: value)
    monkeypatch.setattr(info, "_cores", lambda: 4)
    monkeypatch.setattr(info, "select", lambda problem: "native")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    lines = lines_of_info(capsys)
    assert lines["library"] == "built for portable; built without OpenMP: one thread"
    assert lines["threads"] == (
        f"PyTorch {torch.get_num_threads()}; the native kernels 1, built without OpenMP; OMP_NUM_THREADS=4"
    )
    assert lines["on cpu"] == "calls run on native; it has 1 thread, built without OpenMP: 3 of 4 cores stay idle"


@pytest.mark.parametrize(
    ("mapped", "said"),
    [
        (
            ("/torch/lib/libgomp.so.1", "/usr/lib/libomptarget.so", "/usr/lib/libm.so.6"),
            "/torch/lib/libgomp.so.1",
        ),
        (
            ("/a b/libomp.so.5", "/sklearn.libs/libgomp-e985.so.1.0.0", "/opt/intel/libiomp5.so"),
            "/a b/libomp.so.5, /opt/intel/libiomp5.so, /sklearn.libs/libgomp-e985.so.1.0.0: 3 different ones, "
            "each with threads of its own, which get in each other's way",
        ),
        ((), "none is loaded"),
        (None, f"what of it is loaded is not known on {platform.system()}"),
    ],
    ids=["one", "three", "none", "no maps"],
)
def test_info_names_openmps_runtimes(mapped, said, tmp_path, monkeypatch):
    maps = tmp_path / "maps"
    if mapped is not None:
        line = "7f57-7f58 r-xp 00000000 fe:00 5392224                    {}\n7f58-7f59 rw-p 00000000 00:00 0\n"
        maps.write_text("".join(2 * line.format(path) for path in mapped))
    monkeypatch.setattr(info, "_MAPS", maps)
    assert info._openmp() == said


@pytest.mark.skipif(sys.platform != "linux" or library.why_not() is not None, reason="of libraries that Linux maps")
def test_info_sees_a_second_openmp(tmp_path):
    """A copy of PyTorch's in another place is another one, as a wheel's own is."""
    first = info._OPENMP.findall(info._MAPS.read_text())[0]
    copy = shutil.copy(first, tmp_path / "libgomp-copy.so.1")
    program = (
        "import ctypes, sys; from simmim_kernels.commands.info import info; print('different ones' in info()); "
        "ctypes.CDLL(sys.argv[1]); print(info())"
    )
    # Python's own environment, without the COLUMNS that readline sets behind its back.
    done = subprocess.run(
        [sys.executable, "-c", program, copy], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    before, after = done.stdout.split("\n", 1)
    assert before == "False"
    assert str(copy) in after
    assert ": 2 different ones, " in after


def test_info_says_why_the_fastest_is_not_what_runs(capsys, monkeypatch):
    monkeypatch.setattr(library, "_load", lambda: (None, "no native library: c++ failed"))
    lines = lines_of_info(capsys)
    assert lines["library"] == lines["native"] == "no native library: c++ failed"
    assert "instructions" not in lines
    assert lines["on cpu"] == "native would be the fastest, but calls run on tiled: no native library: c++ failed"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("tiled", "native would be the fastest, but calls run on tiled: SIMMIM_KERNELS_BACKEND=tiled"),
        (
            "abacus",
            "native, but nothing runs: SIMMIM_KERNELS_BACKEND must name one of cuda, triton, native, tiled, reference",
        ),
    ],
)
def test_info_hears_the_environment(asked, said, capsys, monkeypatch):
    monkeypatch.setenv("SIMMIM_KERNELS_BACKEND", asked)
    assert lines_of_info(capsys)["on cpu"].startswith(said)


def test_info_survives_a_gpu_that_cannot_be_used(capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("CUDA error: out of order\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", broken)
    monkeypatch.setattr(torch, "ones", broken)
    lines = lines_of_info(capsys)
    assert lines["cuda:0"] == lines["on cuda:0"] == "cannot be used: CUDA error: out of order"


def test_info_says_that_triton_must_be_asked_for(monkeypatch):
    monkeypatch.setattr(info, "select", lambda problem: "tiled")
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1, 1))
    for name, reason in {"unavailable": None, "supports": None, "not_by_default": "not verified"}.items():
        monkeypatch.setattr(info.BACKENDS["triton"], name, lambda *_, reason=reason: reason)
    assert info._fastest_on(torch.device("cuda", 0)) == (
        "triton would be the fastest, but calls run on tiled: not verified"
    )


def test_info_wraps_for_a_terminal_and_not_for_a_search(capsys, monkeypatch):
    assert max(map(len, lines_of_info(capsys).values())) > 60
    monkeypatch.setenv("COLUMNS", "50")
    assert main(["info"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 50
