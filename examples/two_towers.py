"""Two towers on the halves of handwritten digits: which lower half belongs to which upper half?

python examples/two_towers.py
"""

import argparse
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import simmim_kernels as sk


def tower() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 64))


def retrieval(upper: torch.Tensor, lower: torch.Tensor) -> float:
    """How often the true lower half is among the five nearest ones."""
    nearest = (upper @ lower.T).topk(5, dim=1).indices
    return (nearest == torch.arange(len(upper))[:, None]).any(1).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=1024)
    options = parser.parse_args()

    torch.manual_seed(0)
    digits = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    digits = digits[torch.randperm(len(digits))]
    train, held_out = digits[:1500], digits[1500:]  # 8 x 8 pixels: the first 32 are the upper half

    towers = nn.ModuleList([tower(), tower()])
    log_scale = nn.Parameter(torch.tensor(10.0).log())  # learnable, as CLIP's
    optimizer = torch.optim.AdamW([*towers.parameters(), log_scale], lr=1e-3)

    def embed(images: torch.Tensor) -> list[torch.Tensor]:
        halves = images.split(32, dim=1)
        return [F.normalize(network(half), dim=1) for network, half in zip(towers, halves, strict=True)]

    start = time.perf_counter()
    for step in range(1, options.steps + 1):
        batch = train[torch.randperm(len(train))[: options.batch_size]]
        noisy = batch + 0.1 * torch.randn_like(batch)
        loss = sk.clip_loss(*embed(noisy), log_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(options.steps // 5, 1) == 0:
            with torch.no_grad():
                found = retrieval(*embed(held_out))
            print(
                f"step {step}: loss {loss.item():.3f}, top-5 retrieval of {len(held_out)} held-out halves {found:.1%}"
            )
    print(f"{time.perf_counter() - start:.1f} s, logit scale {log_scale.exp().item():.1f}")


if __name__ == "__main__":
    main()
