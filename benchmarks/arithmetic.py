"""What the Triton kernels of a CLIP step can reach on an H100, by arithmetic on their compiled code, without a GPU.

python -m benchmarks.arithmetic [d ...]

Of every kernel that looks at pairs: cycles of one multiprocessor for a tile's products, for the instructions that its
warps issue, for exponentials, shuffles and the operands' way from L2; and the share of the matrix units' rate that is
left, where all of these overlap ("most") and where a tile's products and the rest of its work take turns ("least").
Programs that share a multiprocessor move it from the second to the first. The last columns are a whole step, with the
vendor's products of a strip's backward at the full rate. On an H100 it was 64% and 65% of the rate of its own products
at d = 512 and 768 (benchmarks/results/gpu-nvidia-h100-80gb-hbm3.json).
"""

import argparse
import re
from dataclasses import dataclass

from .compile import compiling_for, configurations, cuobjdump, launch_all, meta_problem, torch

TARGET = "cuda:90"
WIDTHS = (64, 128, 256, 512, 768, 1024)

# Of an H100 SXM: a multiprocessor's cycle has 4 issued warp instructions, 4096 FLOP of bfloat16 products (989 TFLOP/s
# over 132 at 1.83 GHz), 16 lanes of special functions, 32 lanes of shuffles, and its share of 5120 bytes from L2.
ISSUED, FLOP, SPECIAL, SHUFFLED, FROM_L2 = 4, 4096, 16, 32, 5120 / 132
REGISTERS, SHARED, MOST_WARPS = 65536, 227 * 1024, 64
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)


@dataclass
class Kernel:
    """One kernel's machine code, by what its warps do once a tile."""

    name: str
    warps: int
    programs: int
    """That fit on a multiprocessor"""
    issued: int
    special: int
    shuffles: int


def read(name: str, binary, d: int, width: int) -> Kernel:
    """Counts, of a tile: what stands in the loop over the operands' columns as often as it runs, all else once."""
    code = [(int(at, 16), opcode, rest) for at, opcode, rest in _INSTRUCTION.findall(cuobjdump(binary, "-sass"))]
    products = [at for at, opcode, _ in code if opcode.startswith("HGMMA")]
    inside = range(0)
    for at, opcode, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if opcode.startswith("BRA") and target and int(target[1], 16) < at:
            loop = range(int(target[1], 16), at + 1)
            if any(p in loop for p in products) and (not inside or len(loop) < len(inside)):
                inside = loop
    # A fused kernel's loop is over tiles: once for each.
    times = 1 if name == "_fused_gradients" else max(1, -(-d // width) - 1)
    counts = dict.fromkeys(("", "MUFU", "SHFL"), 0)
    for at, opcode, _ in code:
        if name == "_fused_gradients" and at not in inside:
            continue
        for kind in counts:
            counts[kind] += (times if at in inside else 1) * opcode.startswith(kind)
    usage = cuobjdump(binary, "-res-usage")
    registers, warps = int(re.search(r"REG:(\d+)", usage)[1]), binary.metadata.num_warps
    registers = -(-registers // 8) * 8
    fit = min(REGISTERS // (registers * warps * 32), MOST_WARPS // warps)
    fit = min(fit, SHARED // max(1, binary.metadata.shared + 1024))
    return Kernel(name, warps, fit, counts[""], counts["MUFU"], counts["SHFL"])


@dataclass
class Tile:
    """Cycles of a multiprocessor for one tile, by what they are spent on, and products of the tile's pairs."""

    products: float
    issued: float
    special: float
    shuffles: float
    l2: float

    @property
    def most(self) -> float:
        return self.products / max(vars(self).values())

    @property
    def least(self) -> float:
        rest = max(self.issued, self.special, self.shuffles)
        return self.products / (max(self.products, self.l2) + rest)


def cycles(kernel: Kernel, own: int, other: int, d: int) -> Tile:
    fused = kernel.name == "_fused_gradients"
    return Tile(
        products=(2 if fused else 1) * 2 * own * other * d / FLOP,
        issued=kernel.issued * kernel.warps / ISSUED,
        special=kernel.special * kernel.warps * 32 / SPECIAL,
        shuffles=kernel.shuffles * kernel.warps * 32 / SHUFFLED,
        l2=(other if fused else own + other) * d * 2 / FROM_L2,
    )


def kernels_of(d: int) -> list[tuple[Kernel, Tile]]:
    """Of a CLIP step in bfloat16: the kernels that make products, with what their tiles take."""
    problem, found = meta_problem(d, torch.bfloat16, n=65536, dims="both", joint="left_out"), []
    with compiling_for(TARGET, found):
        launch_all(problem, modes=(False,))
        shapes = {
            "_statistics_of_tiles": configurations.forward_tile(problem),
            "_fused_gradients": configurations.fused_tile(problem),
            "_weights_of_tiles": configurations.weights_tile(problem),
        }
    made: dict[str, tuple[Kernel, Tile]] = {}
    for name, binary in found:
        # Those that weigh pairs come for one reference, which serves a model's scores, and then for two.
        if name in shapes and name not in made:
            shape = shapes[name]
            kernel = read(name, binary, d, min(shape.d, configurations.padded(d)))
            made[name] = kernel, cycles(kernel, shape.own, shape.other, d)
    return list(made.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("d", type=int, nargs="*", default=WIDTHS, help="widths of the features")
    columns = ("products", "issued", "exp2", "shuffles", "L2", "programs", "least", "most", "step least", "step most")
    print(f"{'d':>5} {'kernel':<21}" + "".join(f"{name:>11}" for name in columns))
    for d in parser.parse_args().d:
        kernels = kernels_of(d)
        # Products of a step in units of g: what the kernels make, and for strips the vendor's two.
        made = [2 if k.name == "_fused_gradients" else 1 for k, _ in kernels]
        passes = [2 if k.name == "_fused_gradients" else 1 for k, _ in kernels]
        vendors = 0 if "_fused_gradients" in {k.name for k, _ in kernels} else 2
        times = [
            vendors + sum(g * n / getattr(tile, kind) for g, n, (_, tile) in zip(made, passes, kernels, strict=True))
            for kind in ("least", "most")
        ]
        for k, tile in kernels:
            spent = (tile.products, tile.issued, tile.special, tile.shuffles, tile.l2)
            shares = [f"{tile.least:11.0%}{tile.most:11.0%}", *(f"{4 / time:11.0%}" for time in times)]
            print(f"{d:>5} {k.name:<21}" + "".join(f"{c:11.0f}" for c in spent) + f"{k.programs:11}" + "".join(shares))


if __name__ == "__main__":
    main()
