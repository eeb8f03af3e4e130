"""A native library that is not the one that was built is a reason in a line, and never the end of the process."""

import re
import shutil
import subprocess
import sys

import pytest

from simmim_kernels.backends.native import library
from simmim_kernels.backends.native.library import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"the native library: {why_not()}")

# What is looked into. The loaders of other formats may end a process whose library has changed.
elf = pytest.mark.skipif(sys.platform != "linux", reason="of an ELF library")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The library and what lies beside it, copied to where the loader then looks."""
    for name in ("_LIBRARY", "_DIGEST", "_REASON"):
        original = getattr(library, name)
        if original.exists():
            shutil.copy(original, tmp_path)
        monkeypatch.setattr(library, name, tmp_path / original.name)
    library._load.cache_clear()
    yield library
    library._load.cache_clear()


def test_a_whole_one_loads(installed):
    assert installed.why_not() is None
    assert installed.instruction_sets()


@elf
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97, 0.9999])
def test_one_that_ends_early(installed, share):
    contents = installed._LIBRARY.read_bytes()
    installed._LIBRARY.write_bytes(contents[: int(share * len(contents))])
    assert "\n" not in installed.why_not()
    assert "native library" in installed.why_not()
    assert installed.loaded() is None
    assert installed.built_for() == installed.instruction_sets() == ()


@elf
def test_one_with_a_page_of_zeros(installed):
    contents = bytearray(installed._LIBRARY.read_bytes())
    middle = len(contents) // 2 // 4096 * 4096
    contents[middle : middle + 4096] = bytes(4096)
    installed._LIBRARY.write_bytes(contents)
    assert "damaged: its contents are not those that were built: build it again" in installed.why_not()


@pytest.mark.parametrize("contents", [b"", b"not a library", b"\x7fELF\x02\x01" + bytes(40), bytes(10000)], ids=len)
def test_garbage(installed, contents):
    installed._LIBRARY.write_bytes(contents)
    assert "native library" in installed.why_not()


@elf
def test_names_that_are_no_text(installed):
    contents = installed._LIBRARY.read_bytes()
    installed._LIBRARY.write_bytes(contents.replace(b"posix_memalign", b"\xff" * len("posix_memalign")))
    assert installed.why_not().startswith("the native library cannot be loaded: ")
    assert installed.why_not().isprintable()


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError(""), "the loader's message is no text"),
        (UnicodeDecodeError("utf-8", b"undefined symbol: \xff", 18, 19, "invalid"), r"undefined symbol: \xff"),
        (OSError("undefined symbol: \udcff"), r"undefined symbol: \udcff"),
    ],
    ids=["3.10", "3.11 to 3.13.0", "later"],
)
def test_what_pythons_make_of_such_names(installed, monkeypatch, raised, said):
    def load(path):
        raise raised

    monkeypatch.setattr(library.ctypes, "CDLL", load)
    assert installed.why_not() == f"the native library cannot be loaded: {said}"


def test_another_library(installed):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("another library is made by a compiler, and there is none")
    source = installed._LIBRARY.with_name("other.cpp")
    source.write_text('extern "C" int another() { return 1; }\n')
    installed._DIGEST.unlink()
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", installed._LIBRARY], check=True)
    assert "another one" in installed.why_not()


def test_one_of_other_sources(installed, monkeypatch):
    monkeypatch.setattr(library, "_INTERFACE", -1)
    assert installed.why_not() == "the native library was built from other sources: build it again"


def test_a_folder_in_its_place(installed):
    installed._LIBRARY.unlink()
    installed._LIBRARY.mkdir()
    assert "cannot be loaded" in installed.why_not()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "not built: pip install -e . does"),
        ("", "not built: pip install -e . does"),
        ("no C++ compiler: c++\nand more\n", "no C++ compiler: c++"),
    ],
)
def test_none_at_all(installed, written, said):
    installed._LIBRARY.unlink()
    if written is not None:
        installed._REASON.write_text(written)
    assert installed.why_not() == f"no native library: {said}"


@elf
def test_one_that_was_stripped(installed):
    """As distributors do, and auditwheel: names and headers change, what is loaded does not."""
    strip = shutil.which("strip")
    if strip is None:
        pytest.skip("needs strip, of binutils")
    before = installed._LIBRARY.stat().st_size
    subprocess.run([strip, "--strip-unneeded", installed._LIBRARY], check=True)
    assert installed._LIBRARY.stat().st_size < before
    assert installed.why_not() is None


@pytest.mark.parametrize(("choice", "said"), [("portable", None), ("mmx", "must name one of .*portable.*got 'mmx'")])
def test_an_instruction_set_chosen_by_name(choice, said, installed, monkeypatch):
    installed._load.cache_clear()
    monkeypatch.setenv(installed.CHOICE, choice)
    if said is None:
        assert installed.in_use() == choice
    else:
        with pytest.warns(UserWarning, match=said):
            assert installed.loaded() is None
        assert re.search(said, installed.why_not())
