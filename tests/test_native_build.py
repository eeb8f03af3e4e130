"""The build of the native library: with and without OpenMP, under a user's flags, and for other machines."""

import ctypes
import importlib.util
import re
import shlex
import shutil
import struct
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What the header declares is what a library exports.
INTERFACE = set(
    re.findall(r"^(?:int|const char \*) ?(simmim_\w+)\(", (ROOT / "csrc/cpu/simmim_cpu.h").read_text(), re.MULTILINE)
)

compiles = pytest.mark.skipif(
    shutil.which("c++") is None or sys.platform != "linux", reason="needs a C++ compiler with OpenMP, as Linux has"
)


@pytest.fixture
def build(setup_py, tmp_path, monkeypatch):
    """Builds the library with little optimisation, by default of the portable kernels alone, and gives its path."""
    monkeypatch.chdir(ROOT)

    def built(compiler="c++", flags="", linker_flags="", every_set=False) -> Path:
        if not every_set:
            monkeypatch.setattr(setup_py, "INSTRUCTION_SETS", {})
        for name, value in {"CXX": compiler, "CXXFLAGS": f"-O1 {flags}", "LDFLAGS": linker_flags}.items():
            monkeypatch.setenv(name, value)
        setup_py.build_library(tmp_path / setup_py.NATIVE.file, tmp_path)
        return tmp_path / setup_py.NATIVE.file

    return built


@compiles
def test_link_time_optimisation_is_left_out(build):
    """It would undo that the weakest instruction set's object comes first."""
    library = build(flags="-flto", linker_flags="-flto")
    for made in ("dispatch.o", "portable.o"):
        contents = library.with_name(made).read_bytes()
        # GCC's sections, or clang's file of LLVM's intermediate code.
        assert b".gnu.lto_" not in contents
        assert not contents.startswith((b"BC\xc0\xde", b"\xde\xc0\x17\x0b"))
    loaded = ctypes.CDLL(str(library))
    loaded.simmim_built_for.restype = ctypes.c_char_p
    assert loaded.simmim_built_for() == b"portable"


# What stands in for a compiler without OpenMP, and for Apple's, which has the front end of it but no option of its own.
PLAIN = '#!/bin/sh\nexec c++ "$@"\n'
WITHOUT = """#!/bin/sh
case " $* " in *" -fopenmp "*) echo "c++: error: unsupported option '-fopenmp'" >&2; exit 1;; esac
exec c++ "$@"
"""
APPLES = """#!/bin/sh
case " $* " in
*" -Xclang -fopenmp "*) ;;
*" -fopenmp "*) echo "clang: error: unsupported option '-fopenmp'" >&2; exit 1;;
esac
case " $* " in *" -shared "*) case " $* " in
*" -Xclang -fopenmp "*" -lomp "*) ;;
*) echo "ld: error: undefined: ___kmpc_fork_call" >&2; exit 1;;
esac;; esac
for each; do
    shift
    case $each in -Xclang | -lomp) ;; *) set -- "$@" "$each";; esac
done
exec c++ "$@"
"""


@compiles
@pytest.mark.parametrize(
    ("compiler", "has"), [(PLAIN, True), (APPLES, True), (WITHOUT, False)], ids=["c++", "Apple's", "none"]
)
def test_openmp_where_the_compiler_has_it(compiler, has, build, tmp_path, capfd):
    path = tmp_path / "compiler"
    path.write_text(compiler)
    path.chmod(0o755)
    library = build(str(path))
    loaded = ctypes.CDLL(str(library))
    assert bool(loaded.simmim_openmp()) == has
    assert has or loaded.simmim_openmp_threads() == 1
    if library.read_bytes().startswith(ELF):
        assert exported(library.read_bytes()) == INTERFACE
    assert ("has no OpenMP: the native library will have one thread" in capfd.readouterr().out) != has


# How to compile for them, the file's first bytes there, and the bytes that name the processor after these.
MACH_O, ELF = b"\xcf\xfa\xed\xfe", b"\x7fELF\x02\x01"
TARGETS = {
    "aarch64-macos": (MACH_O, 4, b"\x0c\x00\x00\x01"),
    "x86_64-macos": (MACH_O, 4, b"\x07\x00\x00\x01"),
    "aarch64-linux-gnu": (ELF, 18, b"\xb7\x00"),
}
LINKERS = {"__dso_handle", "_mh_dylib_header"}


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs ziglang, of the extra dev: 101 MB")
@pytest.mark.parametrize("target", list(TARGETS))
def test_other_machines(target, build):
    """Compiled with every instruction set and linked, not run: no machine of theirs is here."""
    magic, at, processor = TARGETS[target]
    # Without the standard libraries, which zig would first compile from their sources.
    undefined = "-Wl,-undefined,dynamic_lookup" if magic == MACH_O else "-Wl,-z,undefs"
    compiler = shlex.join([sys.executable, "-m", "ziglang", "c++", "-target", target])
    library = build(compiler, "-O0 -fno-sanitize=undefined -w", f"-nostdlib {undefined}", every_set=True)
    contents = library.read_bytes()
    assert contents.startswith(magic)
    assert contents[at : at + len(processor)] == processor
    assert exported(contents) - LINKERS == INTERFACE


def exported(library: bytes) -> set[str]:
    """The names that a 64-bit, little-endian library of one of these formats defines for others."""
    return elf_names(library) if library.startswith(ELF) else mach_o_names(library)


def name_at(library: bytes, at: int) -> str:
    return library[at : library.index(0, at)].decode()


def elf_names(library: bytes) -> set[str]:
    """As Elf64_Ehdr, Elf64_Shdr and Elf64_Sym lay them out."""
    sections, size, count = *struct.unpack_from("<Q", library, 40), *struct.unpack_from("<HH", library, 58)
    headers = [struct.unpack_from("<IIQQQQII", library, sections + k * size) for k in range(count)]
    (dynamic,) = (header for header in headers if header[1] == 11)
    names, found = headers[dynamic[6]][4], set()
    for at in range(dynamic[4], dynamic[4] + dynamic[5], 24):
        name, info, visibility, section = struct.unpack_from("<IBBH", library, at)
        if info >> 4 and section and not visibility:
            found.add(name_at(library, names + name))
    return found


def mach_o_names(library: bytes) -> set[str]:
    """As mach_header_64, symtab_command and nlist_64 lay them out; without the underscore of C's names."""
    (commands,), at, found = struct.unpack_from("<I", library, 16), 32, set()
    for _ in range(commands):
        command, size, symbols, count, names = struct.unpack_from("<5I", library, at)
        at += size
        if command != 2:
            continue
        for k in range(count):
            name, kind = struct.unpack_from("<IB", library, symbols + 16 * k)
            # Defined in a section, external, and not private to the library.
            if kind & 0x1F == 0x0F:
                found.add(name_at(library, names + name).removeprefix("_"))
    return found
