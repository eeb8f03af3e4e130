"""The first run of the CUDA library on a GPU: is it right, and how fast is each variant of its kernel?

    python benchmarks/cuda_first_run.py LIBRARY.so RESULTS.json [--seconds 55]

Needs PyTorch and the library alone. The work is done in a process of its own, a step at a time: one that takes too long
or crashes is recorded, its variant is left alone, and the rest goes on in a new process. Rates count 2 N M d
operations; the figure beside them is PyTorch's product of two 8192 x 8192 bfloat16 matrices, between the timings.
"""

import argparse
import ctypes
import itertools
import json
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

SIZES = ((1, 1), (1, 4097), (127, 129), (128, 128), (129, 300), (300, 520), (520, 127), (4097, 300), (4097, 4097))
DEPTHS = (8, 64, 72, 104, 328, 512, 768)
TIMED, TIMED_DEPTHS = 65536, (64, 128, 256, 512, 768)
START_SECONDS, STEP_SECONDS = 30.0, 15.0
TOLERANCE = 1e-5


class Problem(ctypes.Structure):
    """simmim_cuda_problem of csrc/cuda/simmim_cuda.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "m", "d")),
        *((name, ctypes.c_void_p) for name in ("x", "y")),
        *((name, ctypes.c_int64) for name in ("x_row", "y_row")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("row_bias", "col_bias")),
        ("device", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
        ("variant", ctypes.c_int32),
    )


class TooLarge(Exception):
    """The variant does not take this d."""


class Library:
    def __init__(self, path):
        self.found = ctypes.CDLL(str(Path(path).resolve()))
        self.found.simmim_cuda_variants.restype = ctypes.c_char_p
        self.found.simmim_cuda_message.restype = ctypes.c_char_p
        self.found.simmim_cuda_workspace.argtypes = (ctypes.c_int64, ctypes.c_int64)
        self.found.simmim_cuda_workspace.restype = ctypes.c_int64
        self.found.simmim_cuda_log_sum_exps.argtypes = (ctypes.POINTER(Problem), *(ctypes.c_void_p,) * 3)
        self.variants = self.found.simmim_cuda_variants().decode().split(",")

    def workspace(self, torch, n, m):
        size = self.found.simmim_cuda_workspace(n, m)
        return torch.full((size // 4,), torch.nan, device="cuda")

    def log_sum_exps(self, torch, variant, x, y, scale, row_bias, col_bias, rows, columns, workspace):
        def address(tensor):
            return None if tensor is None else tensor.data_ptr()

        problem = Problem(
            *(len(x), len(y), x.shape[1], address(x), address(y), x.stride(0), y.stride(0), scale),
            *(address(row_bias), address(col_bias), x.device.index, torch.cuda.current_stream().cuda_stream, variant),
        )
        outputs = (address(rows), address(columns), address(workspace))
        status = self.found.simmim_cuda_log_sum_exps(problem, *outputs)
        message = self.found.simmim_cuda_message().decode()
        if status and "too large" in message:
            raise TooLarge(message)
        if status:
            raise RuntimeError(f"status {status}: {message}")


class Work:
    """The steps, in the process that has the GPU."""

    def __init__(self, path):
        import torch

        self.torch, self.library = torch, Library(path)
        torch.backends.cuda.matmul.allow_tf32 = False
        self.truths = {}
        torch.zeros(1, device="cuda")

    def machine(self, _):
        torch = self.torch
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "torch": torch.__version__,
            "variants": self.library.variants,
        }

    def check(self, variant):
        cases = [(n, m, d, 1.0, None) for (n, m), d in itertools.product(SIZES, DEPTHS)]
        cases += [(300, 520, 72, scale, None) for scale in (-1.0, 0.0, 100.0, -100.0)]
        cases += [(300, 520, 72, 1.0, spread) for spread in (1.0, 300.0)]
        cases += [(20000, 17000, 64, 1.0, None), (16384, 32768, 128, 1.0, 1.0)]
        worst, dense_worst, wrong, unequal, done = 0.0, 0.0, [], 0, 0
        for case in cases:
            try:
                error, dense_error, repeats = self._check_one(variant, *case)
            except TooLarge:
                continue
            done += 1
            worst, dense_worst = max(worst, error), max(dense_worst, dense_error)
            unequal += not repeats
            if not error <= TOLERANCE:
                wrong.append([*case, error])
        return {"cases": done, "worst": worst, "dense": dense_worst, "not_repeated": unequal, "wrong": wrong[:12]}

    def _case(self, n, m, d, scale, spread):
        key = (n, m, d, scale, spread)
        if key not in self.truths:
            torch = self.torch
            generator = torch.Generator("cuda").manual_seed(n * 31 + m * 7 + d)

            def normal(*shape):
                return torch.randn(shape, device="cuda", generator=generator)

            x, y = ((3 * normal(extent, d) / d**0.25).bfloat16() for extent in (n, m))
            biases = (None, None) if spread is None else (spread * normal(n), spread * normal(m))

            def dense(dtype):
                s = scale * (x.to(dtype) @ y.to(dtype).T)
                for bias, dim in zip(biases, (1, 0), strict=True):
                    s = s if bias is None else s.add_(bias.to(dtype).unsqueeze(dim))
                return s.logsumexp(1), s.logsumexp(0)

            truth = dense(torch.float64)
            dense_error = max(_error(a, b) for a, b in zip(dense(torch.float32), truth, strict=True))
            self.truths[key] = (x, y, biases, truth, dense_error)
        return self.truths[key]

    def _check_one(self, variant, n, m, d, scale, spread):
        torch = self.torch
        x, y, biases, truth, dense_error = self._case(n, m, d, scale, spread)
        found = []
        for _ in range(2):
            rows, columns = (torch.full((extent,), torch.nan, device="cuda") for extent in (n, m))
            workspace = self.library.workspace(torch, n, m)
            self.library.log_sum_exps(torch, variant, x, y, scale, *biases, rows, columns, workspace)
            found.append((rows, columns))
        error = max(_error(a, b) for a, b in zip(found[0], truth, strict=True))
        repeats = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        return error, dense_error, repeats

    def time(self, variant):
        torch = self.torch
        rates, gemm = {}, [self._gemm()]
        for d in TIMED_DEPTHS:
            x, y = (torch.randn(TIMED, d, device="cuda").mul_(d**-0.5).bfloat16() for _ in range(2))
            rows, columns = (torch.empty(TIMED, device="cuda") for _ in range(2))
            workspace = self.library.workspace(torch, TIMED, TIMED)

            def call(x=x, y=y, rows=rows, columns=columns, workspace=workspace):
                self.library.log_sum_exps(torch, variant, x, y, 1.0, None, None, rows, columns, workspace)

            try:
                milliseconds = self._milliseconds(call, 8)
            except TooLarge:
                continue
            rates[d] = {"ms": milliseconds, "tflops": 2 * TIMED**2 * d / milliseconds / 1e9}
            gemm.append(self._gemm())
        return {"depths": rates, "gemm": gemm}

    def _gemm(self):
        torch = self.torch
        a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
        return 2 * 8192**3 / self._milliseconds(lambda: a @ b, 8) / 1e9

    def _milliseconds(self, call, repeats):
        torch = self.torch
        for _ in range(2):
            call()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        torch.cuda.synchronize()
        return median(a.elapsed_time(b) for a, b in itertools.pairwise(events))

    def profile(self, variant):
        """A few calls alone, for a profiler to look at."""
        torch = self.torch
        for d in (64, 512):
            x, y = (torch.randn(16384, d, device="cuda").mul_(d**-0.5).bfloat16() for _ in range(2))
            rows, columns = (torch.empty(16384, device="cuda") for _ in range(2))
            workspace = self.library.workspace(torch, 16384, 16384)
            for _ in range(2):
                self.library.log_sum_exps(torch, variant, x, y, 1.0, None, None, rows, columns, workspace)
        torch.cuda.synchronize()
        return {}


def _error(got, want):
    """The largest, relative to 1 + |want|; NaN counts as infinite."""
    error = ((got.double() - want).abs() / (1 + want.abs())).max().item()
    return error if error == error else float("inf")


def serve(path):
    """Steps from standard input, a line each; answers to standard output."""
    work = Work(path)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        step, variant = json.loads(line)
        try:
            answer = getattr(work, step)(variant)
        except RuntimeError as error:  # CUDA's among them
            answer = {"error": str(error).splitlines()[0][:300]}
        print(json.dumps(answer), flush=True)


class Worker:
    def __init__(self, path):
        command = [sys.executable, __file__, path, "--serve"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                self.answers.put(json.loads(line))
        self.answers.put({"error": f"the process ended, status {self.process.wait()}"})

    def ask(self, step, seconds):
        if step is not None:
            try:
                self.process.stdin.write(json.dumps(step) + "\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                return {"error": "the process had ended"}
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            return {"error": f"no answer in {seconds:.0f} s"}

    def end(self):
        self.process.kill()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("results", nargs="?")
    parser.add_argument("--seconds", type=float, default=55)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--profile", type=int, metavar="VARIANT", help="nothing but a few calls, for a profiler")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.library)
    if arguments.profile is not None:
        return print(Work(arguments.library).profile(arguments.profile))
    deadline = time.monotonic() + arguments.seconds
    results = {"steps": []}
    worker, skipped = None, set()

    def ask(step, variant):
        nonlocal worker
        left = deadline - time.monotonic()
        if left < 1 or variant in skipped:
            return None
        if worker is None:
            worker = Worker(arguments.library)
            ready = worker.ask(None, min(START_SECONDS, left))
            if "error" in ready:
                print("start:", ready, flush=True)
                worker.end()
                worker = None
                return None
        began = time.monotonic()
        answer = worker.ask([step, variant], min(STEP_SECONDS, max(1.0, deadline - began)))
        results["steps"].append({"step": step, "variant": variant, "seconds": time.monotonic() - began, **answer})
        Path(arguments.results).write_text(json.dumps(results, indent=1) + "\n")
        if "error" in answer:
            print(f"{step} {variant}: {answer['error']}", flush=True)
            skipped.add(variant)
            worker.end()
            worker = None
            return None
        return answer

    machine = ask("machine", None)
    skipped.discard(None)
    print(machine, flush=True)
    for variant, name in enumerate(machine["variants"] if machine else []):
        for step in ("check", "time"):
            answer = ask(step, variant)
            if answer is None:
                continue
            if step == "check":
                print(
                    f"{name:12} {answer['cases']} cases: worst error {answer['worst']:.1e}, dense float32 "
                    f"{answer['dense']:.1e}, {answer['not_repeated']} not repeated; wrong: {answer['wrong']}",
                    flush=True,
                )
            else:
                gemm = median(answer["gemm"])
                figures = "  ".join(
                    f"d {d}: {at['ms']:.3f} ms {at['tflops']:.0f} ({at['tflops'] / gemm:.0%})"
                    for d, at in answer["depths"].items()
                )
                print(f"{name:12} {figures}  gemm {gemm:.0f} TFLOP/s", flush=True)
    if worker is not None:
        worker.end()
    return None


if __name__ == "__main__":
    sys.exit(main())
