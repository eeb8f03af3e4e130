"""Builds the native CPU library where that is possible, and the CUDA library where that is asked for.

pyproject.toml says all else about the package.

It needs a C++17 compiler, but neither Python's headers nor PyTorch's: it is a plain shared library, loaded with ctypes,
and one wheel serves every Python 3. With OpenMP it has threads; where the compiler has none, a library of one thread is
built. Where it cannot be built the package is installed without it, and holds the reason.

    SIMMIM_KERNELS_NATIVE=0   leaves it out
    SIMMIM_KERNELS_NATIVE=1   fails where it cannot be built
    CXX, CXXFLAGS, LDFLAGS    mean what they mean everywhere
    SIMMIM_KERNELS_CUDA=1     compiles the CUDA library too, and fails where it cannot: docs/cuda-wheels.md
    NVCC, CUDA_HOME, TORCH_CUDA_ARCH_LIST   its compiler, or where that lies, and the architectures
    SIMMIM_KERNELS_EMULATE_TILES=1   for tests: portable kernels alone, and those on AMX's tiles with the tiles emulated
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError


class InstructionSet(NamedTuple):
    name: str
    vector_bytes: int
    block_rows: int  # of the register block of a product: as many as there are registers for
    flags: str = ""

    @property
    def options(self) -> list[str]:
        """What a source of the kernels is compiled with."""
        macros = {"ISA": self.name, "VECTOR_BYTES": self.vector_bytes, "BLOCK_ROWS": self.block_rows}
        return [*(f"-DSIMMIM_{macro}={value}" for macro, value in macros.items()), *self.flags.split()]


PORTABLE = InstructionSet("portable", vector_bytes=16, block_rows=4)
NEON = InstructionSet("neon", vector_bytes=16, block_rows=8)
AVX2 = InstructionSet("avx2", 32, 6, "-mavx2 -mfma -mf16c")
AVX512 = InstructionSet("avx512", 64, 12, "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mf16c")
AVX512_BF16 = AVX512._replace(name="avx512_bf16", flags=f"{AVX512.flags} -mavx512bf16")
# Where the system gives processes its registers, as Linux does, and the compiler knows it, as GCC 11 does.
AVX512_AMX = AVX512._replace(name="avx512_amx", flags=f"{AVX512_BF16.flags} -mamx-tile -mamx-bf16")
# What AVX512_AMX does, in plain C++: for tests.
EMULATED_TILES = PORTABLE._replace(name="emulated_tiles", flags="-DSIMMIM_EMULATED_TILES")

# By the first word of the compiler's target; elsewhere PORTABLE alone. Weakest first: of the inline functions of the
# standard library, which several objects hold, the linker keeps the first, and that must run on every processor.
INSTRUCTION_SETS = {
    "x86_64": [PORTABLE, AVX2, AVX512, AVX512_BF16, AVX512_AMX],
    "aarch64": [PORTABLE, NEON],
    "arm64": [PORTABLE, NEON],
}

FLAGS = "-std=c++17 -O3 -fvisibility=hidden -fPIC"
# After the user's: link-time optimisation would merge the sets' objects before the linker can keep the weakest first.
NO_LTO = "-fno-lto"


class OpenMP(NamedTuple):
    flags: str  # of compiler and linker
    libraries: str = ""


# The first that makes a library. Apple's clang has OpenMP's front end alone, and leaves the library, LLVM's, to others.
OPENMP = [OpenMP("-fopenmp"), OpenMP("-Xclang -fopenmp", "-lomp"), OpenMP("")]
OPENMP_SOURCE = """
#include <omp.h>
int threads() {
  int count = 0;
#pragma omp parallel reduction(+ : count)
  count += omp_get_num_threads() > 0;
  return count;
}
"""
SOURCES = Path("csrc/cpu")
BACKENDS = "simmim_kernels.backends"


class Library(NamedTuple):
    """One that is built beside its backend, with a digest of it, or in its place why there is none."""

    name: str
    option: str  # the environment variable: "0" leaves it out, "1" fails where it cannot be built
    wish: str  # where the variable is not set

    @property
    def extension(self) -> str:
        return f"{BACKENDS}.{self.name}._{self.name}"

    @property
    def file(self) -> str:
        return f"_{self.name}.so"

    @property
    def digest(self) -> str:
        return f"_{self.name}_digest.txt"

    @property
    def reason(self) -> str:
        return f"_{self.name}_unavailable.txt"

    @property
    def asked(self) -> str:
        return os.environ.get(self.option, self.wish)


NATIVE = Library("native", "SIMMIM_KERNELS_NATIVE", wish="")
CUDA = Library("cuda", "SIMMIM_KERNELS_CUDA", wish="0")
CUDA_SOURCES = Path("csrc/cuda")
# Where TORCH_CUDA_ARCH_LIST says nothing: code for Ampere and Ada, and for Hopper, and PTX for what comes after.
CUDA_ARCHITECTURES = "8.0+PTX;9.0a"
NAMED_ARCHITECTURES = {"Ampere": "8.0 8.6+PTX", "Ada": "8.9+PTX", "Hopper": "9.0+PTX"}


class Unavailable(Exception):
    """A library cannot be built. The first line says why, the others are the compiler's."""


def build_library(library: Path, objects: Path) -> None:
    if sys.platform == "win32":
        raise Unavailable("there is no build for Windows")
    compiler, compiler_flags, linker_flags = (
        shlex.split(os.environ.get(name, "")) for name in ("CXX", "CXXFLAGS", "LDFLAGS")
    )
    compiler = compiler or ["c++"]
    machine = run([*compiler, "-dumpmachine"]).strip()
    objects.mkdir(parents=True, exist_ok=True)

    def takes(contents: str, flags: str, libraries: str = "") -> bool:
        """Whether the compiler makes a library of a source with these flags beside the user's."""
        source = objects / "probe.cpp"
        source.write_text(contents, encoding="ascii")
        command = [*compiler, *FLAGS.split(), *compiler_flags, *flags.split(), "-shared", str(source), *linker_flags]
        return execute([*command, *libraries.split(), "-o", str(source.with_suffix(".so"))]).returncode == 0

    openmp = next(each for each in OPENMP if not each.flags or takes(OPENMP_SOURCE, *each))
    if not openmp.flags:
        print(f"{shlex.join(compiler)} has no OpenMP: the native library will have one thread", flush=True)
    last = [NO_LTO] if takes("", NO_LTO) else []
    flags = [*FLAGS.split(), *openmp.flags.split(), *compiler_flags, *last]
    sets = INSTRUCTION_SETS.get(machine.split("-")[0], [PORTABLE])
    if "linux" not in machine or not takes("", AVX512_AMX.flags):
        sets = [each for each in sets if each != AVX512_AMX]
    if os.environ.get("SIMMIM_KERNELS_EMULATE_TILES") == "1":
        sets = [PORTABLE, EMULATED_TILES]

    # The first object, which runs before any choice is made, has no instruction set's flags.
    compilations = [("dispatch", "dispatch.cpp", [f"-DSIMMIM_HAS_{each.name.upper()}" for each in sets])]
    compilations += [(each.name, "kernels.cpp", each.options) for each in sets]

    def compiled(compilation: tuple[str, str, list[str]]) -> str:
        name, source, own_flags = compilation
        target = objects / f"{name}.o"
        run([*compiler, *flags, *own_flags, "-c", str(SOURCES / source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        linked = list(pool.map(compiled, compilations))
    linker_flags = [*linker_flags, *openmp.libraries.split(), *last]
    run([*compiler, *flags, "-shared", *linked, *linker_flags, "-o", str(library)])


def build_cuda_library(library: Path) -> None:
    architectures = cuda_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    packages = without_nvcc()
    if packages:
        if "sm_90a" not in architectures:
            raise Unavailable("NVRTC compiles for 9.0a alone, which TORCH_CUDA_ARCH_LIST does not name")
        if len(architectures) > 1:
            print("NVRTC compiles for 9.0a alone: other architectures are left out", flush=True)
        run([sys.executable, str(CUDA_SOURCES / "build_nvrtc.py"), str(packages), str(library)])
    else:  # of build.sh, which reads them
        variables = [f"NVCC={nvcc()}", f"ARCHITECTURES={' '.join(architectures)}"]
        run(["env", *variables, "bash", str(CUDA_SOURCES / "build.sh"), str(library)])


def cuda_architectures(wanted: str) -> list[str]:
    """A TORCH_CUDA_ARCH_LIST in nvcc's words: code for each, and then PTX."""
    code, ptx = [], []
    for listed in (wanted or CUDA_ARCHITECTURES).replace(";", " ").split():
        for each in NAMED_ARCHITECTURES.get(listed, listed).split():
            version = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", each)
            if not version or int(version[1]) < 8:
                print(f"there are no CUDA kernels for {each}", flush=True)
                continue
            number = version[1] + version[2]
            code.append(f"sm_{number}" if number != "90" else "sm_90a")
            if version[3]:
                ptx.append(f"compute_{number}")
    if not code:
        raise Unavailable(f"TORCH_CUDA_ARCH_LIST must name one from 8.0 on, got {wanted!r}")
    return list(dict.fromkeys([*code, *ptx]))


def without_nvcc() -> Path | None:
    """CUDA_HOME, where that is what NVIDIA's packages for CUDA 12 make, with NVRTC and without nvcc."""
    home = os.environ.get("CUDA_HOME")
    return Path(home) if home and not os.environ.get("NVCC") and Path(home, "cuda_nvrtc").is_dir() else None


def nvcc() -> str:
    """That of NVCC, of CUDA_HOME, of the package nvidia-cuda-nvcc in this Python, of the PATH, or where CUDA goes."""
    named, home = os.environ.get("NVCC"), os.environ.get("CUDA_HOME")
    if named:
        return named
    homes = [home] if home else [*packaged_cuda(), None, "/usr/local/cuda"]
    for each in homes:
        found = shutil.which("nvcc", path=each and os.path.join(each, "bin"))
        if found:
            return found
    raise Unavailable(f"no nvcc in {home}, which is CUDA_HOME" if home else "no nvcc: CUDA_HOME names no CUDA")


def packaged_cuda() -> list[str]:
    """Folders in which NVIDIA's packages of this Python put CUDA, latest first."""
    found = [str(home) for folder in sys.path for home in Path(folder or ".").glob("nvidia/cu[0-9]*")]
    return sorted(found, key=lambda home: int(re.sub(r"\D", "", Path(home).name)), reverse=True)


def cuda_version() -> str:
    """As in "130", of the compiler that would be used."""
    packages = without_nvcc()
    if packages:
        header = (packages / "cuda_runtime" / "include" / "cuda.h").read_text(encoding="utf-8")
        version = int(re.findall(r"#define CUDA_VERSION (\d+)", header)[0])
        return f"{version // 1000}{version % 1000 // 10}"
    (major, minor) = re.findall(r"release (\d+)\.(\d+)", run([nvcc(), "--version"]))[0]
    return f"{major}{minor}"


def execute(command: list[str]) -> subprocess.CompletedProcess[str]:
    print(shlex.join(command), flush=True)
    try:
        # In English, for the search below.
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", env={**os.environ, "LC_ALL": "C"}
        )
    except OSError as error:
        raise Unavailable(f"no C++ compiler: {command[0]}: {error.strerror}") from None


def run(command: list[str]) -> str:
    result = execute(command)
    print(result.stderr, end="", file=sys.stderr, flush=True)
    if result.returncode:
        lines = result.stderr.splitlines() or [f"exit status {result.returncode}"]
        # What went wrong, rather than where, or that something did.
        errors = (line for line in lines if re.search(r"error: (?!ld returned|linker command)", line))
        raise Unavailable("\n".join([f"{command[0]} failed: {next(errors, lines[0])}", *lines[-10:]]))
    return result.stdout


class BuildLibraries(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        # setuptools would name the Python ABI, which the libraries do not use.
        *folders, name = fullname.split(".")
        return os.path.join(*folders, f"{name}.so")

    def run(self) -> None:
        for each in (NATIVE, CUDA):
            if not self._built(each):
                # Nothing for an editable install to link to.
                self.extensions = [extension for extension in self.extensions if extension.name != each.extension]

    def _built(self, it: Library) -> bool:
        library = Path(self.get_ext_fullpath(it.extension))
        digest, reason = library.with_name(it.digest), library.with_name(it.reason)
        if it is CUDA and it.asked != "1":
            return False  # it is for those who ask, and one that was built by hand stays
        library.parent.mkdir(parents=True, exist_ok=True)
        for stale in (library, digest, reason):
            stale.unlink(missing_ok=True)
        try:
            if it.asked == "0":
                raise Unavailable(f"{it.option}=0 left it out of the build")
            if it is NATIVE:
                build_library(library, Path(self.build_temp))
            else:
                build_cuda_library(library)
            # Run by its path: the package itself needs PyTorch.
            found = runpy.run_path("simmim_kernels/backends/integrity.py")["digest"](library.read_bytes())
            if found is not None:
                digest.write_text(f"{found}\n", encoding="ascii")
        except Unavailable as error:
            if it.asked == "1":
                raise CompileError(f"{it.option}=1, but the {it.name} library is unavailable: {error}") from None
            self.warn(f"installing without the {it.name} library: {error}")
            reason.write_text(f"{error}\n", encoding="utf-8")
            return False
        return True


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        # Asked for when the contents are in place. With a library, they run on one platform but under any Python 3.
        native, cuda = (Path(self.bdist_dir, *f"{BACKENDS}.{it.name}".split("."), it.file) for it in (NATIVE, CUDA))
        self.root_is_pure = not (native.exists() or cuda.exists())
        tag = super().get_tag()
        if self.root_is_pure:
            return tag
        platform = tag[2]
        if cuda.exists() and platform.startswith("linux_"):
            platform = manylinux(platform, [library for library in (native, cuda) if library.exists()])
        return "py3", "none", platform


def manylinux(platform: str, libraries: list[Path]) -> str:
    """The tag of the oldest glibc that has the symbols of all of them, by the names of the versions that they ask for.

    OpenMP's runtime, which native has from PyTorch, is no part of the tag's promise.
    """
    contents = b"".join(library.read_bytes() for library in libraries)
    minor = max([17, *(int(found) for found in re.findall(rb"GLIBC_2\.(\d+)\b", contents))])
    return platform.replace("linux_", f"manylinux_2_{minor}_", 1)


def long_description() -> str:
    """The README for readers who meet it away from the repository: its links and images name the release's files."""
    (source,) = re.findall(r'^Source = "(.*)"$', Path("pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    version = runpy.run_path("simmim_kernels/version.py")["__version__"]

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[0].endswith((".png", ".svg")) else "blob"
        return f"{source}/{kind}/v{version}/{link[0]}"

    # In Markdown what follows "](", unless it has a scheme or stays on the page.
    return re.sub(r"(?<=\]\()(?!\w+:|#)[^)\s]+(?=\))", absolute, Path("README.md").read_text(encoding="utf-8"))


# The tests import parts of this file.
if __name__ == "__main__":
    extensions = [
        Extension(NATIVE.extension, [str(SOURCES / "dispatch.cpp"), str(SOURCES / "kernels.cpp")]),
    ]
    options = {}
    if CUDA.asked == "1":
        extensions.append(Extension(CUDA.extension, [str(CUDA_SOURCES / "simmim_cuda.cu")]))
        # The sources are the same whatever they are compiled by.
        if "sdist" not in sys.argv:
            options["egg_info"] = {"tag_build": f"+cu{cuda_version()}"}
    setup(
        long_description=long_description(),
        long_description_content_type="text/markdown",
        ext_modules=extensions,
        cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
        options=options,
    )
