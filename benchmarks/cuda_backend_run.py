"""The backend `cuda` on a GPU: values and gradients against float64, and the times of whole losses.

    python benchmarks/cuda_backend_run.py RESULTS.json [--seconds 55]

Needs the package importable, with its library built. Steps are watched as those of cuda_first_run.py are.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from cuda_first_run import TIMED, TIMED_DEPTHS, Events, Worker, serve

N_DENSE = 8192


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
        """Each error beside that of dense PyTorch in bfloat16, whose scores alone are float32."""
        torch = self.torch
        options = [
            {},
            {"biases": True},
            {"joint": "left_out"},
            {"joint": "left_out", "positives": True, "biases": True},
            {"strided": True},
        ]
        cases = [
            (n, m, d, option)
            for n, m, d in ((300, 520, 72), (129, 130, 9), (1, 300, 8), (520, 4097, 512))
            for option in options
        ]
        cases += [(20000, 17000, 64, {"biases": True}), (12000, 17000, 256, {"joint": "left_out"})]
        worst, wrong = {}, []
        for n, m, d, option in cases:
            if n > m and option.get("joint"):
                continue
            for name, (error, allowed) in self._errors(n, m, d, **option).items():
                worst[name] = max(worst.get(name, 0.0), error)
                if not error <= allowed:
                    wrong.append([n, m, d, option, name, error, allowed])
        torch.cuda.synchronize()
        return {"cases": len(cases), "worst": worst, "wrong": wrong[:12]}

    def _errors(self, n, m, d, biases=False, joint="counted", positives=False, strided=False):
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
        tensors["scale"] = torch.tensor(0.7, device="cuda")
        column = torch.randint(m, (n,), device="cuda", generator=generator) if positives else None
        weights = [torch.linspace(0.5, 1.5, extent, device="cuda") for extent in (n, m)]

        def outcome(sums, leaves):
            total = sum((value * weight.to(value.dtype)).sum() for value, weight in zip(sums, weights, strict=True))
            found = torch.autograd.grad(total, list(leaves.values()))
            return [value.detach() for value in sums] + list(found)

        def leaves_in(dtype):
            return {name: t.detach().to(dtype or t.dtype).requires_grad_() for name, t in tensors.items()}

        def ours():
            leaves = leaves_in(None)
            s = self.sk.PairwiseScores(
                leaves["x"], leaves["y"], scale=leaves["scale"], positives=column,
                row_bias=leaves.get("row_bias"), col_bias=leaves.get("col_bias"),
            )  # fmt: skip
            s = s.marginal if joint == "left_out" else s
            return outcome(s.logsumexps(backend="cuda"), leaves)

        def dense(dtype):
            leaves = leaves_in(dtype)
            s = leaves["scale"] * (leaves["x"] @ leaves["y"].T)
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
        for at, name in enumerate(["rows", "columns", *tensors]):
            size = truth[at].abs().max().clamp(min=1e-30)
            error = ((got[at].double() - truth[at]).abs().max() / size).item()
            if name in ("rows", "columns"):
                allowed = 1e-5
            else:
                of_dense = 4e-3 if low is None else ((low[at].double() - truth[at]).abs().max() / size).item()
                allowed = 2 * of_dense + 2.0**-7
            found[name] = (error if error == error else float("inf"), allowed)
            if not torch.equal(got[at], again[at]):
                found[f"{name} not repeated"] = (1.0, 0.0)
        return found

    def time(self, _):
        """CLIP's loss, whose two directions come from one pass: N = 65536 forward, forward and backward."""
        torch, rates = self.torch, {}
        gemm = [self._gemm()]
        for d in TIMED_DEPTHS:
            x, y = (torch.nn.functional.normalize(torch.randn(TIMED, d, device="cuda")).bfloat16() for _ in range(2))
            x.requires_grad_(), y.requires_grad_()
            scale = torch.tensor(14.3, device="cuda", requires_grad=True)

            def loss(x=x, y=y, scale=scale):
                with self.sk.use_backend("cuda"):
                    return self.sk.clip_loss(x, y, scale)

            def step(loss=loss, leaves=(x, y, scale)):
                torch.autograd.grad(loss(), leaves)

            def forward(loss=loss):
                with torch.no_grad():
                    loss()

            step()
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step()
            peak = torch.cuda.max_memory_allocated() - before
            work = 2 * TIMED**2 * d
            rates[d] = {
                "forward": self._rate(forward, 5, work),
                "step": self._rate(step, 5, 4 * work),
                "peak_mb": peak / 1e6,
            }
            gemm.append(self._gemm())
        return {"depths": rates, "gemm": gemm}

    def dense(self, _):
        """Small enough for dense PyTorch: CLIP's loss at N = 8192 beside it, and beside the backend tiled."""
        torch, found = self.torch, {}
        for d in (64, 512):
            x, y = (torch.nn.functional.normalize(torch.randn(N_DENSE, d, device="cuda")).bfloat16() for _ in range(2))
            x.requires_grad_(), y.requires_grad_()
            scale = torch.tensor(14.3, device="cuda", requires_grad=True)
            labels = torch.arange(N_DENSE, device="cuda")

            def by_formula(x=x, y=y, scale=scale, labels=labels):
                s = scale.bfloat16() * x @ y.T
                cross_entropy = torch.nn.functional.cross_entropy
                return (cross_entropy(s, labels) + cross_entropy(s.T, labels)) / 2

            def by(backend, x=x, y=y, scale=scale):
                with self.sk.use_backend(backend):
                    return self.sk.clip_loss(x, y, scale)

            ways = {"dense": by_formula, "cuda": lambda: by("cuda"), "tiled": lambda: by("tiled")}
            found[d] = {
                name: self._milliseconds(lambda way=way, leaves=(x, y, scale): torch.autograd.grad(way(), leaves), 10)
                for name, way in ways.items()
            }
        return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("results")
    parser.add_argument("--seconds", type=float, default=55)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(Work(None))
    deadline = time.monotonic() + arguments.seconds
    results, worker = [], None
    for step in ("machine", "check", "time", "dense"):
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
            gemm = sorted(answer["gemm"])[len(answer["gemm"]) // 2]
            for d, at in answer["depths"].items():
                figures = (
                    f"{name} {at[name]['ms']:.2f} ms {at[name]['tflops'] / gemm:.0%}" for name in ("forward", "step")
                )
                print(f"clip, N {TIMED}, d {d}:", *figures, f"{at['peak_mb']:.0f} MB, gemm {gemm:.0f}", flush=True)
        else:
            print(f"{step}: {answer}", flush=True)
    if worker is not None:
        worker.end()
    return None


if __name__ == "__main__":
    sys.exit(main())
