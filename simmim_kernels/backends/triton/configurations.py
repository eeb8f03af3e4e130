"""Tile shapes by architecture: what each kernel is compiled with, without a search at first use.

Those of half precision on sm_90 are the fastest of about forty on an H100, at 33,792 rows: there blocks of weights
for the vendor's products took half the time of a fused kernel at d = 256, and more than it at d = 128. All others were
timed on no GPU: they are the largest that compile without spilled registers and within the shared memory of their
architecture (`python -m benchmarks.compile`, which tests/test_triton_compile.py asserts).
"""

from typing import Any, NamedTuple

import torch
from triton import knobs

from ...problem import Problem


class Tile(NamedTuple):
    """One tile of pairs, and how a program works on it."""

    own: int
    other: int
    d: int
    """Columns of the operands at a time"""
    warps: int
    stages: int

    def constants(self, d: int) -> dict[str, Any]:
        width = min(self.d, padded(d))
        blocks = {"BI": self.own, "BJ": self.other, "BD": width, "EVEN_D": d % width == 0}
        return {**blocks, "num_warps": self.warps, "num_stages": self.stages}


class Shapes(NamedTuple):
    """Of one architecture and kind of product. `fused` is by the padded width of the operands, narrowest first."""

    forward: Tile
    weights: Tile
    fused: dict[int, Tile]
    atomics: bool = True
    """Whether one fused pass may add up the other side's gradient by atomics. Two passes make a product more."""


class Kinds(NamedTuple):
    """By what a tile's registers must hold beside its scores."""

    plain: Shapes
    softplus: Shapes
    heavy: Shapes
    """For problems with ids, a clamp, log1mexp, entropies, or rows that vector loads cannot take"""
    guided: Shapes | None = None
    """For problems with a guide, whose product is made outside the tensor cores and whose mask outlives it; None where
    those of heavy problems have the registers for both"""


# By kind of product: bfloat16 and float16 ("half"), float32 through TF32 ("tf32") or as it is ("ieee"), which runs
# outside the tensor cores.
_EXACT = Shapes(
    Tile(64, 64, 16, 8, 2), Tile(64, 64, 16, 8, 2), {16: Tile(64, 32, 16, 8, 2), 64: Tile(64, 32, 64, 8, 2)}
)
# Of 8 warps ptxas would rather spill a few bytes than run fewer programs at a time.
_EXACT_GUIDED = _EXACT._replace(fused={16: Tile(64, 32, 16, 4, 1), 64: Tile(32, 32, 64, 4, 1)})
_HOPPER_EXACT_GUIDED = _EXACT._replace(
    forward=Tile(64, 64, 16, 8, 1), fused={16: Tile(32, 32, 16, 4, 1), 64: Tile(32, 32, 64, 4, 1)}
)
_TF32 = Shapes(
    Tile(128, 64, 32, 8, 3),
    Tile(128, 64, 32, 8, 3),
    {64: Tile(64, 32, 64, 4, 2), 128: Tile(64, 32, 128, 8, 2)},
)
_AMPERE = Shapes(
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 8, 3),
    {64: Tile(64, 32, 64, 8, 2), 128: Tile(64, 32, 128, 8, 2)},
)
_HOPPER = Shapes(
    Tile(128, 128, 64, 4, 3),
    Tile(128, 128, 64, 4, 3),
    {64: Tile(128, 64, 64, 4, 2), 128: Tile(64, 64, 128, 4, 2)},
    atomics=False,
)
_HOPPER_SOFTPLUS = Shapes(
    Tile(128, 128, 64, 4, 3),
    Tile(128, 128, 64, 8, 3),
    {64: Tile(64, 64, 64, 4, 2), 128: Tile(64, 64, 128, 4, 2)},
)
_HOPPER_HEAVY = Shapes(
    Tile(64, 128, 64, 8, 3),
    Tile(64, 128, 64, 8, 3),
    {64: Tile(64, 64, 64, 8, 2), 128: Tile(64, 64, 128, 8, 2)},
)
_BLACKWELL = Shapes(
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 8, 3),
    {64: Tile(128, 64, 64, 8, 2), 128: Tile(64, 64, 128, 8, 2)},
    atomics=False,
)
_BLACKWELL_HEAVY = Shapes(
    Tile(128, 64, 64, 8, 3),
    Tile(128, 64, 64, 8, 3),
    {64: Tile(64, 32, 64, 8, 2), 128: Tile(64, 64, 128, 8, 2)},
)
_BLACKWELL_GUIDED = _BLACKWELL_HEAVY._replace(fused={64: Tile(64, 64, 64, 8, 2), 128: Tile(64, 32, 128, 4, 2)})
_BLACKWELL_TF32 = _TF32._replace(fused={64: Tile(64, 64, 64, 8, 2), 128: Tile(64, 32, 128, 8, 2)})
_BLACKWELL_TF32_GUIDED = _TF32._replace(fused={128: Tile(64, 32, 128, 4, 2)})
_CDNA = Shapes(
    Tile(128, 128, 64, 8, 2),
    Tile(128, 128, 64, 8, 2),
    {64: Tile(64, 32, 64, 4, 2), 128: Tile(32, 32, 128, 4, 2), 256: Tile(32, 32, 256, 4, 1)},
)
_CDNA_HEAVY = _CDNA._replace(
    forward=Tile(64, 64, 64, 4, 2),
    weights=Tile(64, 64, 64, 4, 2),
    fused={64: Tile(32, 32, 64, 4, 2), 128: Tile(64, 16, 128, 4, 1), 256: Tile(32, 16, 256, 4, 1)},
)
_CDNA_TF32 = _TF32._replace(fused={64: Tile(32, 32, 64, 4, 1), 128: Tile(32, 32, 128, 4, 1)})
_CDNA_EXACT = _EXACT._replace(fused={16: Tile(32, 32, 16, 8, 1), 64: Tile(32, 32, 64, 8, 1)})
_CDNA_EXACT_GUIDED = _CDNA_EXACT._replace(fused={16: Tile(32, 32, 16, 8, 1), 64: Tile(32, 16, 64, 4, 1)})
_AMPERE_HEAVY = _AMPERE._replace(forward=Tile(64, 128, 64, 8, 3), weights=Tile(64, 128, 64, 8, 3))

_TABLE = {
    "80": {
        "half": Kinds(_AMPERE, _AMPERE, _AMPERE_HEAVY),
        "tf32": Kinds(_TF32, _TF32, _TF32),
        "ieee": Kinds(_EXACT, _EXACT, _EXACT, _EXACT_GUIDED),
    },
    "90": {
        "half": Kinds(_HOPPER, _HOPPER_SOFTPLUS, _HOPPER_HEAVY),
        "tf32": Kinds(_TF32, _TF32, _TF32),
        "ieee": Kinds(_EXACT, _EXACT, _EXACT, _HOPPER_EXACT_GUIDED),
    },
    "100": {
        "half": Kinds(_BLACKWELL, _BLACKWELL_HEAVY, _BLACKWELL_HEAVY, _BLACKWELL_GUIDED),
        "tf32": Kinds(_BLACKWELL_TF32, _BLACKWELL_TF32, _BLACKWELL_TF32, _BLACKWELL_TF32_GUIDED),
        "ieee": Kinds(_EXACT, _EXACT, _EXACT, _EXACT_GUIDED),
    },
    "gfx942": {
        "half": Kinds(_CDNA, _CDNA, _CDNA_HEAVY),
        "tf32": Kinds(_CDNA_TF32, _CDNA_TF32, _CDNA_TF32),
        "ieee": Kinds(_CDNA_EXACT, _CDNA_EXACT, _CDNA_EXACT, _CDNA_EXACT_GUIDED),
    },
}
# Of all others, the least shared memory (99 KB): sm_86, sm_89.
_TABLE["86"] = _TABLE["80"]
# As those, but that the compiler leaves a thread fewer registers.
_CONSUMER = _AMPERE._replace(fused={**_AMPERE.fused, 64: Tile(64, 32, 64, 4, 2)})
_CONSUMER_HEAVY = _AMPERE_HEAVY._replace(fused={**_AMPERE.fused, 64: Tile(32, 32, 64, 4, 2)})
_CONSUMER_TF32 = _TF32._replace(forward=Tile(64, 64, 32, 4, 3))
_CONSUMER_TF32_GUIDED = _CONSUMER_TF32._replace(fused={64: Tile(32, 32, 64, 4, 2), 128: Tile(64, 32, 128, 8, 2)})
_TABLE["120"] = {
    "half": Kinds(_CONSUMER, _CONSUMER, _CONSUMER_HEAVY),
    "tf32": Kinds(_CONSUMER_TF32, _CONSUMER_TF32, _CONSUMER_TF32, _CONSUMER_TF32_GUIDED),
    "ieee": _TABLE["80"]["ieee"],
}
# Neither has TF32.
for _name in ("gfx90a", "gfx950"):
    _TABLE[_name] = {kind: _TABLE["gfx942"][kind] for kind in ("half", "ieee")}
_ROWS = {"80": "80", "90": "90", "100": "100", "103": "100", "120": "120", "121": "120"}

_INTERPRETER = Shapes(Tile(16, 32, 16, 4, 1), Tile(16, 32, 16, 4, 1), {256: Tile(16, 32, 256, 4, 1)})

# Scores of a block of tiles that are made before its parts are merged: the parts take 16 MB with tiles of 128, from
# 16,384 rows and columns on, and a block has a hundred tiles for each multiprocessor.
BLOCK = 16384
# A block of weights for the vendor's products takes at most so many bytes, and its shape is bounded so that neither
# the strip's accumulator nor the operands' share of the traffic grows. 8448 = 64 * 132 rows of a product's tiles of 128
# fill an H100's 132 multiprocessors: 5% faster than 8192.
WEIGHTS_BYTES = 2 * 8448**2
STRIP_WIDTH = 8448
STRIP_HEIGHT = 16896
# The largest float32 accumulator beside half-precision gradients.
ACCUMULATOR_BYTES = 512 * 2**20


# Of networks: `own` x `other` pairs, which are the rows of the products, and `d` of the activations at a time. Of one
# layer there are no products. Of two, forward and backward by the padded width, narrowest first; the activations of a
# backward stay in registers beside the products.
_ONE_LAYER = Tile(32, 32, 16, 8, 1)
_TwoLayers = dict[str, dict[int, tuple[Tile, Tile]]]
_EXACT_NETWORK = {
    64: (Tile(4, 8, 16, 8, 2), Tile(4, 8, 16, 8, 2)),
    128: (Tile(4, 8, 16, 8, 2), Tile(4, 8, 16, 4, 2)),
    256: (Tile(4, 8, 16, 8, 2), Tile(4, 8, 16, 8, 2)),
}
# Of Hopper and Blackwell, whose matrix instructions take 64 rows at least.
_WARPGROUP_NETWORK: _TwoLayers = {
    "half": {
        64: (Tile(8, 16, 64, 8, 3), Tile(8, 8, 64, 8, 3)),
        128: (Tile(8, 16, 64, 8, 3), Tile(8, 16, 64, 8, 3)),
        256: (Tile(8, 16, 64, 8, 3), Tile(8, 8, 64, 8, 3)),
    },
    "tf32": {
        128: (Tile(8, 16, 32, 8, 2), Tile(8, 8, 32, 8, 2)),
        256: (Tile(8, 8, 32, 8, 2), Tile(8, 8, 32, 8, 2)),
    },
    "ieee": _EXACT_NETWORK,
}
# What fits everywhere else.
_OTHER_NETWORK: _TwoLayers = {
    "half": {
        128: (Tile(8, 8, 32, 8, 2), Tile(8, 8, 32, 8, 2)),
        256: (Tile(4, 8, 32, 8, 2), Tile(4, 8, 32, 8, 2)),
    },
    "tf32": {
        128: (Tile(4, 8, 16, 8, 2), Tile(4, 8, 16, 4, 2)),
        256: (Tile(4, 8, 16, 8, 2), Tile(4, 8, 16, 8, 2)),
    },
    "ieee": _EXACT_NETWORK,
}
_INTERPRETED_NETWORK = Tile(8, 16, 16, 4, 1)
# Scores of a network that are made before their parts are merged: its tiles are small, and the parts many.
NETWORK_BLOCK = 4096
# What a network's backward writes of a block of pairs: the more, the fewer launches.
NETWORK_BYTES = 256 * 2**20


def input_precision(problem: Problem) -> str:
    """Of float32 products, as PyTorch's own setting has it; half precision has but one."""
    return _precision(problem, problem.x.dtype)


def network_precision(problem: Problem) -> str:
    """As `input_precision`, of the weight of a network; float16 weights are multiplied as float32 through TF32."""
    dtype = problem.parameters[0].dtype
    if dtype == torch.float16:
        return "tf32" if _has_tf32(problem.x.device) else "ieee"
    return _precision(problem, dtype)


def _precision(problem: Problem, dtype: torch.dtype) -> str:
    rounds = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if rounds and _has_tf32(problem.x.device) else "ieee"


def _has_tf32(device: torch.device) -> bool:
    """Of AMD's architectures gfx942 alone has such products."""
    row = architecture(device)
    return not row.startswith("gfx") or row == "gfx942"


def network_tile(problem: Problem, differentiates: bool) -> Tile:
    row, d = architecture(problem.x.device), padded(problem.x.shape[1])
    if row == "interpreter":
        return _INTERPRETED_NETWORK
    if len(problem.parameters) == 2:
        return _ONE_LAYER
    kind = "half" if problem.parameters[0].dtype == torch.bfloat16 else network_precision(problem)
    table = _WARPGROUP_NETWORK if row in ("90", "100") else _OTHER_NETWORK
    return next(tiles[differentiates] for width, tiles in table[kind].items() if d <= width)


def network_constants(tile: Tile, d: int) -> dict[str, Any]:
    blocks = {"BI": tile.own, "BJ": tile.other, "BD": padded(d), "BK": min(tile.d, padded(d))}
    return {**blocks, "num_warps": tile.warps, "num_stages": tile.stages}


def network_block(size: int) -> tuple[int, int]:
    """Height and width of a backward's blocks of pairs, each of which takes `size` bytes; powers of two."""
    width = 1 << (max(1, NETWORK_BYTES // size).bit_length() + 1) // 2
    return max(1, NETWORK_BYTES // (size * width)), width


def without_tiles(device: torch.device) -> str | None:
    """Why there are no tiles for a device, if there are none."""
    row = architecture(device)
    if row in _TABLE or row == "interpreter":
        return None
    known = ", ".join(name for name in _TABLE if name.startswith("gfx"))
    return f"of AMD's architectures there are tiles for {known} alone; {device} is {row}"


def architecture(device: torch.device) -> str:
    """The row of the table for a device, or an AMD architecture that has none."""
    if knobs.runtime.interpret:
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return row_of(f"{properties.major}{properties.minor}")


def row_of(name: str) -> str:
    """The row of the table for a compute capability, or for the name of an AMD architecture, which stays itself."""
    return name if name.startswith("gfx") else _ROWS.get(name, "86")


def _shapes(problem: Problem, entropies: bool = False) -> Shapes:
    row = architecture(problem.x.device)
    if row == "interpreter":
        return _INTERPRETER
    kind = "half" if problem.x.dtype.itemsize == 2 else input_precision(problem)
    kinds = _TABLE[row][kind]
    ragged = problem.x.shape[1] % 16 != 0
    if problem.guided:
        return kinds.guided or kinds.heavy
    if problem.row_ids is not None or problem.clamped or problem.fn == "log1mexp" or ragged or entropies:
        return kinds.heavy
    return kinds.softplus if problem.fn == "softplus" else kinds.plain


def forward_tile(problem: Problem, entropies: bool = False) -> Tile:
    return _shapes(problem, entropies).forward


def weights_tile(problem: Problem) -> Tile:
    return _shapes(problem).weights


def fused_tile(problem: Problem) -> Tile | None:
    """Of the fused backward; None where the operands are too wide for it."""
    d = padded(problem.x.shape[1])
    return next((tile._replace(d=d) for width, tile in _shapes(problem).fused.items() if d <= width), None)


def atomics(problem: Problem) -> bool:
    """Shapes.atomics"""
    return _shapes(problem).atomics


def padded(d: int) -> int:
    """d up to a power of two, of at least 16: what a tile of matrix instructions takes."""
    return max(16, 1 << (d - 1).bit_length())


def programs_wanted(device: torch.device) -> int:
    """Enough to fill the device twice; a fused backward splits its columns until there are so many."""
    if device.type != "cuda":
        return 2 * 132
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count
