"""Builds the CUDA library without nvcc: build_nvrtc.py HOME OUTPUT

For CUDA 12, of which the package index has no nvcc. HOME is a folder `nvidia` with what the packages
nvidia-cuda-nvrtc-cu12, nvidia-cuda-runtime-cu12 and nvidia-cuda-nvcc-cu12 put there, of the last of which headers alone
are used. The host's compiler makes the library's own part, with references to the kernels that it launches; NVRTC makes
those, and the library gets them whole, with a table of their names. It is for Hopper alone.
"""

import ctypes
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ARCHITECTURE = "sm_90a"
LINE = re.compile(r"^\s+U (\S+)$", re.MULTILINE)


def run(*command: str | Path, text: str | None = None) -> str:
    result = subprocess.run(list(map(str, command)), input=text, stdout=subprocess.PIPE, text=True, check=True)
    return result.stdout


def build(home: Path, output: Path) -> None:
    includes = [f"-I{home / each / 'include'}" for each in ("cuda_runtime", "cuda_nvcc")]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        compiler = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden"]
        compiler.append(f'-DSIMMIM_CUDA_ARCHITECTURES="{ARCHITECTURE}"')
        run(*compiler, *includes, "-x", "c++", "-c", HERE / "simmim_cuda.cu", "-o", folder / "host.o")
        wanted = kernels_of(folder / "host.o")
        image, names = compiled(home, list(wanted.values()))
        assert set(names) == set(wanted), "the two compilers name kernels differently"
        (folder / "image.cubin").write_bytes(image)
        (folder / "table.s").write_text(table(folder / "image.cubin", names))
        run(*compiler, "-c", folder / "table.s", "-o", folder / "table.o")
        libraries = [home / "cuda_runtime" / "lib" / "libcudart_static.a", "-ldl", "-lrt", "-lpthread"]
        options = ["-shared", "-Wl,--exclude-libs,ALL"]
        run(*compiler, *options, folder / "host.o", folder / "table.o", *libraries, "-o", output)


def kernels_of(host: Path) -> dict[str, str]:
    """By symbol, the kernels that an object refers to, as C++ writes their names."""
    symbols = LINE.findall(run("nm", "--undefined-only", host))
    readable = run("c++filt", text="\n".join(symbols)).splitlines()
    found = {}
    for symbol, name in zip(symbols, readable, strict=True):
        is_kernel = re.fullmatch(
            r"(?:void )?(simmim::(?:kernel|mma_kernel|narrow|merge|joint_pairs|finish|total)<.*>)\(.*\)", name
        )
        if is_kernel:
            found[symbol] = is_kernel[1]
    return found


def compiled(home: Path, kernels: list[str]) -> tuple[bytes, list[str]]:
    """The code of kernels, and their symbols in it."""
    (path,) = (home / "cuda_nvrtc" / "lib").glob("libnvrtc.so.*")
    nvrtc = ctypes.CDLL(str(path))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    program = ctypes.c_void_p()

    def call(name: str, *arguments: object) -> None:
        status = getattr(nvrtc, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: {nvrtc.nvrtcGetErrorString(status).decode()}\n{log()}")

    def text_of(kind: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{kind}")(program, buffer)
        return buffer.raw

    def log() -> str:
        return text_of("ProgramLog").rstrip(b"\0").decode()

    source = b'#include "kernels.cuh"\n'
    call("nvrtcCreateProgram", ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    for kernel in kernels:
        call("nvrtcAddNameExpression", program, kernel.encode())
    options = ["-std=c++17", f"-arch={ARCHITECTURE}", f"-I{HERE}", "-default-device", "-diag-suppress=128"]
    options += [f"--ptxas-options=-{option}" for option in ("warn-spills", "warn-lmem-usage", "Werror")]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    call("nvrtcCompileProgram", program, len(options), encoded)
    print(log(), file=sys.stderr, end="")
    names = []
    for kernel in kernels:
        name = ctypes.c_char_p()
        call("nvrtcGetLoweredName", program, kernel.encode(), ctypes.byref(name))
        assert name.value is not None
        names.append(name.value.decode())
    return text_of("CUBIN"), names


def table(image: Path, names: list[str]) -> str:
    """Assembly: the image, and for each kernel a symbol that stands for it on the host, with its name."""
    lines = [".section .rodata", ".balign 16", *_hidden("simmim_cuda_image"), f'.incbin "{image}"']
    for k, name in enumerate(names):
        lines += [".balign 16", *_hidden(name), ".quad 0", f".name{k}:", f'.asciz "{name}"']
    lines += [".balign 8", *_hidden("simmim_cuda_kernel_count"), f".quad {len(names)}"]
    lines += ['.section .data.rel.ro,"aw"', ".balign 8", *_hidden("simmim_cuda_kernels")]
    for k, name in enumerate(names):
        lines += [f".quad {name}", f".quad .name{k}"]
    return "\n".join([*lines, '.section .note.GNU-stack,"",%progbits', ""])


def _hidden(name: str) -> list[str]:
    return [f".globl {name}", f".hidden {name}", f"{name}:"]


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
