"""What CLIP's loss costs a rank: a model of work, traffic and memory, and on this machine what Gloo's ranks measure.

python -m benchmarks.distributed            the model's table, as docs/distributed.md has it
python -m benchmarks.distributed measure    peak memory of ranks on this machine, and what telling shapes takes
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F

import simmim_kernels as sk

# Numbers that each rank tells the others before the features travel (operator/global_batch.py).
TOLD = 12
# What the table supposes: products a second and bytes a second and direction of a GPU, and bfloat16 features.
RATE, LINK, WIDTH, ITEM = 600e12, 50e9, 512, 2


@dataclass(frozen=True)
class Cost:
    """Of one rank and one step, forward and backward."""

    flop: float
    sent: float
    """Bytes, of collectives by rings."""
    features: float
    """Bytes of features and their gradients beside the rank's own."""
    seconds: float
    """At RATE and LINK, transfers beside the work where the schedule puts them there."""


def cost(world: int, n: int, d: int, schedule: str, item: int = ITEM) -> Cost:
    """n rows of d features of `item` bytes on each rank; schedule "gather", "ring", or open_clip's."""
    wide = max(item, 4)
    others, product = world - 1, 2 * n * (world * n) * d
    block = n * d
    if schedule == "open_clip":
        # local_loss, gather_with_grad: both towers, each score made twice, and their logits held in float32.
        sent = 2 * others * block * 2 * item
        held = 2 * world * block * 2 * item + 2 * 2 * n * world * n * 4
        return Cost(6 * product, sent, held, 6 * product / RATE + sent / LINK)
    statistics_of_columns, loss = 2 * others * n * wide, 2 * others * wide
    rest = others * TOLD * 8 + statistics_of_columns + loss
    if schedule == "gather":
        sent = others * block * (item + wide) + rest
        held = world * block * (item + wide)
        return Cost(4 * product, sent, held, 4 * product / RATE + sent / LINK)
    forward, backward = others * block * item, others * block * item + (world * block * wide if others else 0)
    sent = forward + backward + rest
    seconds = max(product / RATE, forward / LINK) + max(3 * product / RATE, backward / LINK) + rest / LINK
    # A block and the next; of gradients the sum that left, the one that comes, and what the block adds to both sides.
    return Cost(4 * product, sent, block * (2 * item + 4 * wide), seconds)


def table(n: int = 16384, worlds: Sequence[int] = (1, 8, 64, 256, 1024)) -> str:
    """Markdown, of n rows on each rank."""
    lines = [
        "| ranks W | batch N | schedule | PFLOP | sent, GB | memory, GB | seconds | of these not the products' |",
        "|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for world in worlds:
        for schedule in ("ring", "gather", "open_clip"):
            of = cost(world, n, WIDTH, schedule)
            idle = of.seconds - of.flop / RATE
            cells = [f"{world:,}", f"{world * n:,}", schedule, f"{of.flop / 1e15:.3g}", f"{of.sent / 1e9:.3g}"]
            cells += [f"{of.features / 1e9:.3g}", f"{of.seconds:.3g}", f"{idle / of.seconds:.0%}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measured(rank: int, world: int, n: int, d: int, schedule: str, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    batch = sk.GlobalBatch(dist.group.WORLD, schedule)
    small = [torch.randn(64, d, requires_grad=True) for _ in range(2)]
    for _ in range(3):
        sk.clip_loss(*small, 1.0, group=batch).backward()
    times = []
    for _ in range(50):
        start = time.perf_counter()
        sk.PairwiseScores(*small, group=sk.GlobalBatch(dist.group.WORLD, "ring"))
        times.append(time.perf_counter() - start)
    features = [F.normalize(torch.randn(n, d), dim=1).requires_grad_() for _ in range(2)]
    before = _peak_megabytes()
    start = time.perf_counter()
    sk.clip_loss(*features, 14.0, group=batch).backward()
    seconds = time.perf_counter() - start
    Path(folder, str(rank)).write_text(f"{_peak_megabytes() - before} {statistics.median(times)} {seconds}")
    os._exit(0)


def measured(worlds: Sequence[int], n: int, d: int) -> Iterator[str]:
    # What is freed goes back to the system at once, so that the peak is of what was held and not of holes in a heap.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    yield f"{n} rows of {d} float32 features a rank, {n * d * 4 / 2**20:.0f} MB a block; beyond features and gradients:"
    for schedule in ("ring", "gather"):
        for world in worlds:
            with tempfile.TemporaryDirectory() as folder:
                context = multiprocessing.get_context("spawn")
                settings = (world, n, d, schedule, folder)
                started = [context.Process(target=_measured, args=(rank, *settings)) for rank in range(world)]
                for process in started:
                    process.start()
                for process in started:
                    process.join()
                found = [list(map(float, Path(folder, str(rank)).read_text().split())) for rank in range(world)]
            peak, telling, seconds = (max(column) for column in zip(*found, strict=True))
            yield (
                f"{schedule}, {world} ranks: peak {peak:.0f} MB a rank, {seconds:.1f} s a step; "
                f"telling shapes {telling * 1e6:.0f} us"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("model", "measure"), default="model")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=512)
    chosen = parser.parse_args()
    for line in [table()] if chosen.what == "model" else measured(chosen.ranks, chosen.rows, chosen.width):
        print(line, flush=True)
