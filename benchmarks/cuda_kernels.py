"""The CUDA library alone on a GPU: is it right, and how fast is each variant of its kernels?

    python benchmarks/cuda_kernels.py LIBRARY.so RESULTS.json [--seconds 55]

Needs PyTorch and the library alone. The work is done in a process of its own, a step at a time: one that takes too long
or crashes is recorded, its variant is left alone, and the rest goes on in a new process. Rates count 2 N M d
operations; the figure beside them is PyTorch's product of two 8192 x 8192 bfloat16 matrices, between the timings.
"""

import argparse
import ctypes
import itertools
import json
import math
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

SIZES = ((1, 1), (1, 4097), (127, 129), (128, 128), (129, 300), (300, 520), (520, 127), (4097, 300), (4097, 4097))
DEPTHS = (8, 64, 72, 104, 328, 512, 768)
TIMED, STRIP, TIMED_DEPTHS = 65536, 8192, (64, 128, 256, 512, 768)
START_SECONDS, STEP_SECONDS = 30.0, 15.0
TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1.02 * 2.0**-8


class Problem(ctypes.Structure):
    """simmim_cuda_problem of csrc/cuda/simmim_cuda.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "m", "d")),
        *((name, ctypes.c_void_p) for name in ("x", "y")),
        *((name, ctypes.c_int64) for name in ("x_row", "y_row")),
        *((name, ctypes.c_void_p) for name in ("scale", "row_bias", "col_bias", "positives")),
        *((name, ctypes.c_int64) for name in ("first_row", "first_column")),
        *((name, ctypes.c_void_p) for name in ("row_ids", "col_ids")),
        *((name, ctypes.c_int64) for name in ("row_ids_row", "col_ids_row")),
        *((name, ctypes.c_float) for name in ("lo", "hi")),
        *((name, ctypes.c_int32) for name in ("operand", "function", "joint", "ids", "grouped", "device")),
        ("stream", ctypes.c_void_p),
        ("variant", ctypes.c_int32),
    )


class Gradient(ctypes.Structure):
    """simmim_cuda_gradient of the same."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("row_reference", "row_upstream", "col_reference", "col_upstream")),
        ("weights", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("sums", "weight_sums", "workspace")),
        ("adds", ctypes.c_int32),
    )


class Case(NamedTuple):
    n: int
    m: int
    d: int
    scale: float = 1.0
    spread: float | None = None
    """Of biases, or none"""
    joint: str = "counted"
    """Or "diagonal" or "positives", which are left out"""


class TooLarge(Exception):
    """The variant does not take this d."""


class Library:
    def __init__(self, path):
        self.found = ctypes.CDLL(str(Path(path).resolve()))
        self.found.simmim_cuda_variants.restype = ctypes.c_char_p
        self.found.simmim_cuda_message.restype = ctypes.c_char_p
        self.found.simmim_cuda_workspace.argtypes = (ctypes.c_int64, ctypes.c_int64)
        self.found.simmim_cuda_workspace.restype = ctypes.c_int64
        self.found.simmim_cuda_statistics.argtypes = (ctypes.POINTER(Problem), *(ctypes.c_void_p,) * 3)
        self.found.simmim_cuda_weights.argtypes = (ctypes.POINTER(Problem), ctypes.POINTER(Gradient))
        self.variants = self.found.simmim_cuda_variants().decode().split(";")

    def log_sum_exps(self, problem, rows, columns, workspace):
        outputs = (_address(rows), _address(columns), _address(workspace))
        self._check(self.found.simmim_cuda_statistics(problem, *outputs))

    def weights(self, problem, gradient):
        self._check(self.found.simmim_cuda_weights(problem, gradient))

    def _check(self, status):
        message = self.found.simmim_cuda_message().decode()
        if status and "too large" in message:
            raise TooLarge(message)
        if status:
            raise RuntimeError(f"status {status}: {message}")


def _address(tensor):
    return None if tensor is None else tensor.data_ptr()


class Events:
    """Times on the device. Of a class with `torch`."""

    def _rate(self, call, repeats, operations):
        milliseconds = self._milliseconds(call, repeats)
        return {"ms": milliseconds, "tflops": operations / milliseconds / 1e9}

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


class Work(Events):
    """The steps, in the process that has the GPU."""

    def __init__(self, path):
        import torch

        self.torch, self.library = torch, Library(path)
        torch.backends.cuda.matmul.allow_tf32 = False
        self.cases = {}
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

    def problem(self, variant, x, y, scale, biases=(None, None), positives=None, leaves_out=False):
        stream = self.torch.cuda.current_stream().cuda_stream
        return Problem(
            *(len(x), len(y), x.shape[1], _address(x), _address(y), x.stride(0), y.stride(0), _address(scale)),
            *(*map(_address, biases), _address(positives), 0, 0),
            # Without ids and clamp; bfloat16 log-sum-exps.
            *(None, None, 0, 0, -math.inf, math.inf, 0, 0, leaves_out, 0, 0),
            *(x.device.index or 0, stream, variant),
        )

    def workspace(self, n, m):
        return self.torch.full((self.library.found.simmim_cuda_workspace(n, m) // 4,), float("nan"), device="cuda")

    def check(self, variant):
        cases = [Case(n, m, d) for (n, m), d in itertools.product(SIZES, DEPTHS)]
        cases += [Case(300, 520, 72, scale) for scale in (-1.0, 0.0, 100.0, -100.0)]
        cases += [Case(300, 520, 72, spread=spread) for spread in (1.0, 300.0)]
        cases += [Case(520, 520, 72, joint=joint) for joint in ("diagonal", "positives")]
        cases += [Case(20000, 17000, 64, joint="positives"), Case(16384, 32768, 128, spread=1.0, joint="diagonal")]
        return self._worst(cases, variant, self._log_sums_of, TOLERANCE)

    def check_weights(self, variant):
        sizes = ((1, 1), (127, 129), (300, 520), (4097, 300))
        cases = [Case(n, m, d) for (n, m), d in itertools.product(sizes, (8, 72, 512, 768))]
        cases += [Case(300, 520, 72, scale) for scale in (-1.0, 100.0)]
        cases += [Case(300, 520, 72, spread=300.0)]
        cases += [Case(520, 520, 72, joint=joint) for joint in ("diagonal", "positives")]
        cases += [Case(4096, 8192, 128, spread=1.0, joint="diagonal")]
        return self._worst(cases, variant, self._weights_of, WEIGHT_TOLERANCE)

    def _worst(self, cases, variant, errors_of, tolerance):
        worst, dense_worst, wrong, unequal, done = 0.0, 0.0, [], 0, 0
        for case in cases:
            try:
                error, dense_error, repeats = errors_of(variant, case)
            except TooLarge:
                continue
            done += 1
            worst, dense_worst = max(worst, error), max(dense_worst, dense_error)
            unequal += not repeats
            if not error <= tolerance:
                wrong.append([*case, error])
        return {"cases": done, "worst": worst, "dense": dense_worst, "not_repeated": unequal, "wrong": wrong[:12]}

    def _case(self, case):
        if case not in self.cases:
            torch = self.torch
            n, m, d, scale, spread, joint = case
            generator = torch.Generator("cuda").manual_seed(n * 31 + m * 7 + d)

            def normal(*shape):
                return torch.randn(shape, device="cuda", generator=generator)

            x, y = ((3 * normal(extent, d) / d**0.25).bfloat16() for extent in (n, m))
            biases = (None, None) if spread is None else (spread * normal(n), spread * normal(m))
            positives = torch.randint(m, (n,), device="cuda", generator=generator) if joint == "positives" else None

            def dense(dtype):
                s = scale * (x.to(dtype) @ y.to(dtype).T)
                for bias, dim in zip(biases, (1, 0), strict=True):
                    s = s if bias is None else s.add_(bias.to(dtype).unsqueeze(dim))
                if joint == "diagonal":
                    s.diagonal().fill_(-torch.inf)
                if joint == "positives":
                    s.scatter_(1, positives[:, None], -torch.inf)
                return s

            def sums(s):
                return s.logsumexp(1), s.logsumexp(0)

            truth = sums(dense(torch.float64))
            dense_error = max(_error(a, b) for a, b in zip(sums(dense(torch.float32)), truth, strict=True))
            handed = (x, y, torch.tensor(scale, device="cuda"), biases, positives, joint != "counted")
            self.cases[case] = (handed, truth, dense_error, dense)
        return self.cases[case]

    def _log_sums_of(self, variant, case):
        torch = self.torch
        handed, truth, dense_error, _ = self._case(case)
        found = []
        for _ in range(2):
            rows, columns = (torch.full((extent,), torch.nan, device="cuda") for extent in case[:2])
            workspace = self.workspace(*case[:2])
            self.library.log_sum_exps(self.problem(variant, *handed), rows, columns, workspace)
            found.append((rows, columns))
        error = max(_error(a, b) for a, b in zip(found[0], truth, strict=True))
        repeats = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        return error, dense_error, repeats

    def _weights_of(self, variant, case):
        torch = self.torch
        handed, truth, _, dense = self._case(case)
        rows, columns = (sums.float() for sums in truth)
        a, b = (torch.randn(extent, device="cuda") for extent in case[:2])
        stride = (case.m + 15) // 8 * 8
        found = []
        for _ in range(2):
            weights = torch.full((case.n, stride), torch.nan, device="cuda", dtype=torch.bfloat16)
            gradient = Gradient(*map(_address, (rows, a, columns, b, weights)), stride)
            self.library.weights(self.problem(variant, *handed), gradient)
            found.append(weights[:, : case.m])
        s = dense(torch.float64)
        # float32 rounds scores, references and their difference in proportion to their size.
        size = 1 + 1e-4 * s.abs().nan_to_num(0, 0, 0).max()
        of_row, of_column = a[:, None] * (s - truth[0][:, None]).exp(), b * (s - truth[1]).exp()
        of_row, of_column = (part.nan_to_num(0) for part in (of_row, of_column))
        bound = size * (of_row.abs() + of_column.abs()) + 1e-18
        error = ((found[0].double() - (of_row + of_column)).abs() / bound).max().item()
        return error if error == error else float("inf"), 2.0**-9, torch.equal(*found)

    def time(self, variant):
        torch = self.torch
        rates, gemm = {}, [self._gemm()]
        scale = torch.ones((), device="cuda")
        for d in TIMED_DEPTHS:
            x, y = (torch.randn(TIMED, d, device="cuda").mul_(d**-0.5).bfloat16() for _ in range(2))
            rows, columns = (torch.empty(TIMED, device="cuda") for _ in range(2))
            workspace = self.workspace(TIMED, TIMED)
            problem = self.problem(variant, x, y, scale)
            outputs = (rows, columns, workspace)

            def call(problem=problem, outputs=outputs):
                self.library.log_sum_exps(problem, *outputs)

            try:
                rates[d] = self._rate(call, 8, 2 * TIMED**2 * d)
            except TooLarge:
                continue
            gemm.append(self._gemm())
        return {"depths": rates, "gemm": gemm}

    def time_weights(self, variant):
        torch = self.torch
        rates, gemm, n = {}, [self._gemm()], STRIP
        scale = torch.ones((), device="cuda")
        weights = torch.empty((n, n), device="cuda", dtype=torch.bfloat16)
        references, upstream = torch.full((n,), 9.5, device="cuda"), torch.ones(n, device="cuda")
        gradient = Gradient(*map(_address, (references, upstream, references, upstream, weights)), n)
        for d in TIMED_DEPTHS:
            x, y = (torch.randn(n, d, device="cuda").mul_(d**-0.5).bfloat16() for _ in range(2))
            problem = self.problem(variant, x, y, scale)
            try:
                rates[d] = self._rate(lambda p=problem: self.library.weights(p, gradient), 20, 2 * n**2 * d)
            except TooLarge:
                continue
            total = torch.zeros((n, d), device="cuda")

            def product(total=total, y=y):
                torch.addmm(total, weights, y, out_dtype=torch.float32, beta=1, out=total)

            if variant == 0:
                rates[d]["product_ms"] = self._milliseconds(product, 20)
        return {"depths": rates, "gemm": gemm}

    def small(self):
        """Every variant once, on little, for a checker of memory to look at."""
        case = Case(300, 520, 72, spread=1.0, joint="positives")
        return {
            name: [errors(variant, case)[0] for errors in (self._log_sums_of, self._weights_of)]
            for variant, name in enumerate(self.library.variants)
        }

    def profile(self, variant):
        """A few calls alone, for a profiler to look at."""
        torch = self.torch
        for d in (64, 512):
            x, y = (torch.randn(16384, d, device="cuda").mul_(d**-0.5).bfloat16() for _ in range(2))
            rows, columns = (torch.zeros(16384, device="cuda") for _ in range(2))
            workspace, scale = self.workspace(16384, 16384), torch.ones((), device="cuda")
            weights = torch.empty((16384, 16384), device="cuda", dtype=torch.bfloat16)
            problem = self.problem(variant, x, y, scale)
            self.library.log_sum_exps(problem, rows, columns, workspace)
            self.library.weights(problem, Gradient(*map(_address, (rows, rows, columns, columns, weights)), 16384))
        torch.cuda.synchronize()
        return {}


def _error(got, want):
    """The largest, relative to 1 + |want|; NaN counts as infinite."""
    error = ((got.double() - want).abs() / (1 + want.abs())).max().item()
    return error if error == error else float("inf")


def _product(at):
    return f" product {at['product_ms']:.3f}" if "product_ms" in at else ""


def serve(work):
    """Steps from standard input, a line each; answers to standard output."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        step, variant = json.loads(line)
        try:
            answer = getattr(work, step)(variant)
        except RuntimeError as error:  # CUDA's among them
            answer = {"error": str(error).splitlines()[0][:300]}
        print(json.dumps(answer), flush=True)


class Worker:
    def __init__(self, command):
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
    parser.add_argument("--steps", default="check,time,check_weights,time_weights")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--profile", type=int, metavar="VARIANT", help="nothing but a few calls, for a profiler")
    parser.add_argument("--small", action="store_true", help="nothing but every variant once, for a checker of memory")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(Work(arguments.library))
    if arguments.small:
        return print(Work(arguments.library).small())
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
            worker = Worker([sys.executable, __file__, arguments.library, "--serve"])
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
        for step in arguments.steps.split(","):
            answer = ask(step, variant)
            if answer is None:
                continue
            if step.startswith("check"):
                print(
                    f"{name} {step}: {answer['cases']} cases, worst error {answer['worst']:.1e}, dense "
                    f"{answer['dense']:.1e}, {answer['not_repeated']} not repeated; wrong: {answer['wrong']}",
                    flush=True,
                )
            else:
                gemm = median(answer["gemm"])
                figures = "  ".join(
                    f"d {d}: {at['ms']:.3f} ms {at['tflops']:.0f} ({at['tflops'] / gemm:.0%}){_product(at)}"
                    for d, at in answer["depths"].items()
                )
                print(f"{name} {step}: {figures}  gemm {gemm:.0f} TFLOP/s", flush=True)
    if worker is not None:
        worker.end()
    return None


if __name__ == "__main__":
    sys.exit(main())
