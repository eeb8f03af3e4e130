"""One network for two tasks at once: which digit it is, and whether it is even. The information of both is maximised.

python examples/two_tasks.py
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import simmim_kernels as sk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--labels", type=int, default=200, help="digits whose labels are known")
    options = parser.parse_args()

    torch.manual_seed(0)
    data = load_digits()
    order = torch.randperm(len(data.target))
    images, digit = torch.tensor(data.data, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]
    known, held_out = slice(0, options.labels), slice(1000, None)

    backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    heads = {"digit": nn.Linear(64, 10), "even": nn.Linear(64, 2)}
    model = sk.MultiTaskSimMIM(backbone, heads, weights="uncertainty")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    labels = {"digit": digit, "even": (digit % 2 == 0).long()}

    for step in range(1, options.steps + 1):
        output = model({name: (images[known], target[known]) for name, target in labels.items()})
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if step % max(options.steps // 3, 1) == 0:
            told = ", ".join(f"{name} {nats.item():.2f}" for name, nats in output.information.items())
            print(f"step {step}: nats about {told}")

    with torch.no_grad():
        features = backbone(images[held_out])
        for name, target in labels.items():
            right = (heads[name](features).argmax(1) == target[held_out]).float().mean().item()
            print(f"{name}: {right:.1%} of {len(features)} held-out digits, {options.labels} labels")


if __name__ == "__main__":
    main()
