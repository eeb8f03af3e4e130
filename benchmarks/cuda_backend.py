"""The backend `cuda` on a GPU: values and gradients against float64, and the times of whole losses.

    python benchmarks/cuda_backend.py RESULTS.json [--seconds 90]

Needs the package importable, with its library built. Steps are watched as those of cuda_kernels.py are.
"""

import argparse
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
from cuda_kernels import TIMED, TIMED_DEPTHS, Events, Worker, serve

OTHERS = ("check_mma", "check_mma_options", "time_mma")
STEPS = ("machine", "check", "check_options", *OTHERS, "check_large", "time", "small")
SMALL = ((256, 64), (256, 512), (1024, 512), (4096, 512))


SIDES = {"both": slice(0, 2), "rows": slice(0, 1), "columns": slice(1, 2)}


class Work(Events):
    """The steps, in the process that has the GPU."""

    def __init__(self, _):
        import torch

        import simmim_kernels

        self.torch, self.sk = torch, simmim_kernels
        torch.backends.cuda.matmul.allow_tf32 = False

    def machine(self, _):
        return {"device": self.torch.cuda.get_device_name(), "backends": self.sk.backends()}

    def check(self, _):
        """Ragged shapes and every option, beside dense PyTorch in bfloat16, of which the scores alone are float32."""
        options = (
            {},
            {"biases": True},
            {"joint": "left_out"},
            {"joint": "left_out", "positives": True, "biases": True},
            {"strided": True},
            {"sides": "rows"},
            {"sides": "columns", "joint": "left_out"},
            {"mirrored": True, "joint": "left_out"},
        )
        sizes = ((300, 520, 72), (129, 130, 9), (1, 300, 8), (127, 4097, 512), (520, 1000, 768), (2049, 2049, 104))
        return self._worst([(*size, option) for size in sizes for option in options])

    def check_options(self, _):
        """What was made after the first recorded run: every option, type and function, by the rules of the tests."""
        torch, found = self.torch, {}
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from truth import NEGATED, OPTIONS, POINTWISE, Case, check_statistic

        torch.set_float32_matmul_precision("high")
        cases = [(torch.bfloat16, options, "logsumexp") for options in OPTIONS]
        cases += [(torch.float16, options, "logsumexp") for options in OPTIONS]
        cases += [(torch.bfloat16, options, "softplus") for options in NEGATED]
        cases += [(dtype, "biases", fn) for dtype in (torch.bfloat16, torch.float16) for fn in ("softplus", "identity")]
        cases += [(torch.bfloat16, "biases", fn) for fn in POINTWISE if fn != "log1mexp"]
        for dtype, options, fn in cases:
            for dim in (1, 0, (0, 1)):
                case = Case(141, 250, 20, dtype, device="cuda", **(OPTIONS | NEGATED)[options])
                try:
                    check_statistic(self.sk, case, fn, dim, "cuda")
                except AssertionError as error:
                    found[f"{dtype} {options} {fn} {dim}"] = str(error)
        of_tf32 = ("logsumexp", "identity", "softplus", "square")
        for fn in of_tf32:
            case = Case(337, 453, 300, torch.float32, device="cuda", biases=True)
            for name in "xy":  # exact in TF32
                case.tensors[name] = case.tensors[name].detach().bfloat16().float().requires_grad_()
            scores = case.scores(self.sk)
            got = scores.logsumexp(1, backend="cuda") if fn == "logsumexp" else scores.sum(1, fn, backend="cuda")
            error = _error(got.detach().cpu(), case.statistic(case.upcast(), fn, 1).detach())
            if not error <= 1e-5:
                found[f"tf32 {fn}"] = error
        torch.set_float32_matmul_precision("highest")
        return {"cases": 3 * len(cases) + len(of_tf32), "wrong": found}

    def check_mma(self, _):
        """By the kernels for GPUs other than Hopper."""
        with self._by("mma"):
            return self.check(None)

    def check_mma_options(self, _):
        with self._by("mma"):
            return self.check_options(None)

    def time_mma(self, _):
        """CLIP's loss forward, N = 16384, d = 512, in milliseconds: by them, and by those that are chosen."""
        torch, found = self.torch, {}
        x, y = (torch.nn.functional.normalize(torch.randn(16384, 512, device="cuda")).bfloat16() for _ in range(2))
        scale = torch.tensor(14.3, device="cuda")

        def forward():
            with torch.no_grad(), self.sk.use_backend("cuda"):
                self.sk.clip_loss(x, y, scale)

        for name in ("chosen", "mma", "chosen again"):
            with self._by(name):
                found[name] = self._milliseconds(forward, 10)
        return found

    @contextmanager
    def _by(self, variant):
        """Runs kernels of this name alone; of another name, those that the library chooses."""
        from simmim_kernels.backends.cuda import calls, library

        names = library.variants()
        calls.VARIANT = names.index(variant) if variant in names else -1
        try:
            yield
        finally:
            calls.VARIANT = -1

    def check_large(self, _):
        """Several blocks of the forward and of the backward."""
        both = {"joint": "left_out", "biases": True}
        return self._worst([(20000, 17000, 64, {"biases": True}), (12000, 17000, 256, both), (9000, 9000, 768, both)])

    def _worst(self, cases):
        worst, wrong = {}, []
        for n, m, d, option in cases:
            m = n if option.get("mirrored") else m
            for name, (error, allowed) in self._errors(n, m, d, **option).items():
                worst[name] = max(worst.get(name, 0.0), error)
                if not error <= allowed:
                    wrong.append([n, m, d, option, name, error, allowed])
        self.torch.cuda.synchronize()
        return {"cases": len(cases), "worst": worst, "wrong": wrong[:12]}

    def _errors(
        self, n, m, d, biases=False, joint="counted", positives=False, strided=False, sides="both", mirrored=False
    ):
        torch = self.torch
        generator = torch.Generator("cuda").manual_seed(n + m + d)

        def normal(*shape):
            return torch.randn(shape, device="cuda", generator=generator)

        tensors = {"x": (normal(n, d) / d**0.25).bfloat16(), "y": (normal(m, d) / d**0.25).bfloat16()}
        if strided:
            tensors["x"] = tensors["x"].repeat_interleave(2, dim=1)[:, ::2]
            tensors["y"] = tensors["y"].T.contiguous().T
        if biases:
            tensors |= {"row_bias": normal(n), "col_bias": normal(m)}
        if mirrored:
            del tensors["y"]
        tensors["scale"] = torch.tensor(0.7, device="cuda")
        column = torch.randint(m, (n,), device="cuda", generator=generator) if positives else None
        weights = [torch.linspace(0.5, 1.5, extent, device="cuda") for extent in (n, m)]

        def outcome(sums, leaves):
            sums = sums[SIDES[sides]]
            total = sum(
                (value * weight.to(value.dtype)).sum()
                for value, weight in zip(sums, weights[SIDES[sides]], strict=True)
            )
            found = torch.autograd.grad(total, list(leaves.values()))
            return [value.detach() for value in sums] + list(found)

        def leaves_in(dtype):
            return {name: t.detach().to(dtype or t.dtype).requires_grad_() for name, t in tensors.items()}

        def ours():
            leaves = leaves_in(None)
            s = self.sk.PairwiseScores(
                leaves["x"], leaves.get("y", leaves["x"]), scale=leaves["scale"], positives=column,
                row_bias=leaves.get("row_bias"), col_bias=leaves.get("col_bias"),
            )  # fmt: skip
            s = s.marginal if joint == "left_out" else s
            if sides == "both":
                return outcome(s.logsumexps(backend="cuda"), leaves)
            one = s.logsumexp(1 if sides == "rows" else 0, backend="cuda")
            return outcome((one, one), leaves)

        def dense(dtype):
            leaves = leaves_in(dtype)
            s = leaves["scale"] * (leaves["x"] @ leaves.get("y", leaves["x"]).T)
            if biases:
                s = s + leaves["row_bias"][:, None] + leaves["col_bias"]
            if joint == "left_out":
                out = torch.arange(n, device="cuda") if column is None else column
                s = s.scatter(1, out[:, None], -torch.inf)
            s = s if dtype == torch.float64 else s.float()
            return outcome((s.logsumexp(1), s.logsumexp(0)), leaves)

        got, again, truth = ours(), ours(), dense(torch.float64)
        low = dense(torch.bfloat16) if n * m < 2**27 else None
        found = {}
        for at, name in enumerate([*("rows", "columns")[SIDES[sides]], *tensors]):
            error = _error(got[at], truth[at])
            if name in ("rows", "columns"):
                allowed = 1e-5
            else:
                of_dense = 4e-3 if low is None else _error(low[at], truth[at])
                allowed = 2 * of_dense + 2.0**-7
            found[name] = (error, allowed)
            if not torch.equal(got[at], again[at]):
                found[f"{name} not repeated"] = (1.0, 0.0)
        return found

    def time(self, _):
        """CLIP's and SigLIP's loss at N = 65536, each call after a product of two 8192 x 8192 matrices as long.

        The device's clock falls as it warms: a rate beside that of products made at other times would say little.
        """
        torch, found = self.torch, {}
        for d in TIMED_DEPTHS:
            x, y = (torch.nn.functional.normalize(torch.randn(TIMED, d, device="cuda")).bfloat16() for _ in range(2))
            x.requires_grad_(), y.requires_grad_()
            scale, bias = (torch.tensor(value, device="cuda", requires_grad=True) for value in (14.3, -10.0))

            def clip(x=x, y=y, scale=scale):
                return self.sk.clip_loss(x, y, scale)

            def siglip(x=x, y=y, scale=scale, bias=bias):
                return self.sk.siglip_loss(x, y, scale, bias)

            def forward(loss=clip):
                with torch.no_grad():
                    loss()

            def gradients(loss, leaves):
                return lambda: torch.autograd.grad(loss(), leaves)

            leaves, product = (x, y, scale), 2 * TIMED**2 * d
            ways = {
                "clip forward": (forward, product),
                "clip": (gradients(clip, leaves), 4 * product),
                "siglip": (gradients(siglip, (*leaves, bias)), 3 * product),
            }
            with self.sk.use_backend("cuda"):
                found[d] = {name: self._beside_products(*way) for name, way in ways.items()}
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                ways["clip"][0]()
            found[d]["clip"]["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
        return {"depths": found}

    def _beside_products(self, call, operations, rounds=5):
        """Milliseconds of a call, and its rate as a part of that of the products made in turn with it."""
        torch = self.torch
        a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
        taken = {"call": [], "product": []}
        call()
        for _ in range(rounds):
            # As long, so that the clock is that of either.
            repeats = max(1, round(taken["call"][-1] / taken["product"][-1])) if taken["product"] else 1
            for name, function, times in (("product", lambda: a @ b, repeats), ("call", call, 1)):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                for _ in range(times):
                    function()
                end.record()
                torch.cuda.synchronize()
                taken[name].append(begin.elapsed_time(end) / times)
        ours, product = (median(times[1:]) for times in (taken["call"], taken["product"]))
        rate, of_products = operations / ours / 1e9, 2 * 8192**3 / product / 1e9
        return {"ms": ours, "tflops": rate, "product_tflops": of_products, "share": rate / of_products}

    def small(self, _):
        """CLIP's loss, forward and backward, beside dense PyTorch's and the backend triton: with the host's time."""
        torch, found = self.torch, {}
        for n, d in SMALL:
            x, y = (torch.nn.functional.normalize(torch.randn(n, d, device="cuda")).bfloat16() for _ in range(2))
            x.requires_grad_(), y.requires_grad_()
            scale = torch.tensor(14.3, device="cuda", requires_grad=True)
            labels = torch.arange(n, device="cuda")

            def by_formula(x=x, y=y, scale=scale, labels=labels):
                s = scale.bfloat16() * x @ y.T
                cross_entropy = torch.nn.functional.cross_entropy
                return (cross_entropy(s, labels) + cross_entropy(s.T, labels)) / 2

            def by(backend, x=x, y=y, scale=scale):
                with self.sk.use_backend(backend):
                    return self.sk.clip_loss(x, y, scale)

            ways = {"dense": by_formula} | {name: lambda name=name, by=by: by(name) for name in ("cuda", "triton")}
            found[f"{n} x {d}"] = {
                name: self._host_milliseconds(lambda way=way, leaves=(x, y, scale): torch.autograd.grad(way(), leaves))
                for name, way in ways.items()
            }
        return found

    def _host_milliseconds(self, call):
        """By the clock, each call to its end: the host's time, and what of the device's is longer."""
        taken = []
        for _ in range(13):
            began = time.perf_counter()
            call()
            self.torch.cuda.synchronize()
            taken.append(1e3 * (time.perf_counter() - began))
        return median(taken[3:])


def _error(got, want):
    """The largest, relative to the largest finite entry; infinite where an entry that is not finite differs."""
    size = want.nan_to_num(0, 0, 0).abs().max().clamp(min=1e-30)
    error = ((got.double() - want).abs() / size).where(got != want, 0.0).max().item()
    return error if error == error else float("inf")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("results")
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(Work(None))
    deadline = time.monotonic() + arguments.seconds
    results, worker = [], None
    for step in STEPS:
        left = deadline - time.monotonic()
        if left < 2:
            break
        if worker is None:
            worker = Worker([sys.executable, __file__, "none", "--serve"])
            ready = worker.ask(None, min(30.0, left))
            if "error" in ready:
                print("start:", ready, flush=True)
                break
        answer = worker.ask([step, None], min(20.0, max(1.0, deadline - time.monotonic())))
        results.append({"step": step, **answer})
        Path(arguments.results).write_text(json.dumps(results, indent=1) + "\n")
        if "error" in answer:
            print(f"{step}: {answer['error']}", flush=True)
            worker.end()
            worker = None
        elif step == "time":
            for d, at in answer["depths"].items():
                figures = (f"{name} {way['ms']:.2f} ms {way['share']:.0%}" for name, way in at.items())
                print(f"N {TIMED}, d {d}:", *figures, f"{at['clip']['peak_mb']:.0f} MB", flush=True)
        else:
            print(f"{step}: {answer}", flush=True)
    if worker is not None:
        worker.end()
    return None


if __name__ == "__main__":
    sys.exit(main())
