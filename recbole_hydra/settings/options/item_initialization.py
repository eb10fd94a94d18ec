"""``item_initialization: cooccurrence``: vectors of items from which of them stand near each other
in the training histories; ``cooccurrence_std``, how large they are.

They are a truncated singular value decomposition of the positive pointwise mutual information of
items: what skip-gram with negative sampling, item2vec (Barkan and Koenigstein 2016, arXiv
1603.04259), factorises step by step (Levy and Goldberg 2014). A model that starts from them knows
at once what one that starts from noise has to find out from a handful of interactions per item.

What it takes is bounded, whatever the catalogue: of a long log a sample is read, and where the
decomposition would take long, as of a large catalogue or of one without structure, a randomized one
in a fixed number of passes takes its place (Halko, Martinsson and Tropp 2011, arXiv 0909.4061).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from recbole_hydra.data.targets import POSITION, TargetDataset
from recbole_hydra.errors import ConfigError
from recbole_hydra.model.causal import KNOWN
from recbole_hydra.settings.options.training_mode import is_known_as_causal
from recbole_hydra.settings.rules import choice, number, optional

if TYPE_CHECKING:
    from recbole.data.dataset import SequentialDataset
    from scipy.sparse import csr_array

    from recbole_hydra.settings.config import Config

logger = logging.getLogger(__name__)

#: Items up to this far apart count as near, in inverse proportion to the distance.
WINDOW = 5

#: The power of an item's frequency as the other of a pair; below 1 it keeps the mutual information
#: with rare items from being large by chance (Levy, Goldberg and Dagan 2015).
SMOOTHING = 0.75

#: Below this many items the whole decomposition is quicker than the leading part of it.
FEW_ITEMS = 512

#: Of more training targets than this, a random sample is read: every pair takes 16 bytes.
MOST_TARGETS = 1_000_000

#: ARPACK is the exact decomposition. It begins anew at most RESTARTS times (the sets that we have
#: take up to 5 times), and is not tried where that many could take more than this work: number of
#: products, times the entries and the vectors that each of them reads.
RESTARTS, MOST_WORK = 10, 4e9

#: The randomized decomposition: vectors beyond those that are asked for, times that the matrix and
#: its transpose are applied to sharpen them, and the most entries of the matrix times vectors.
MORE_VECTORS, POWER, MOST_OF_A_PASS = 16, 2, 1e9


RULES = {
    "item_initialization": choice(("normal", "cooccurrence")),
    "cooccurrence_std": optional(number(above=0)),
}


def fit(config: Config) -> None:
    """Refuse co-occurrence where the run cannot use it; as a default it is dropped."""
    final = config.final_config_dict
    if final["item_initialization"] == "normal":
        return
    if not is_known_as_causal(config):
        why = (
            f"cooccurrence is for {KNOWN}, whose item embeddings are known, not for {config.model}"
        )
    elif "text" in str(final.get("item_encoder")):
        why = "cooccurrence is for item_encoder id; with texts, items start from them"
    else:
        return
    if config.external_config_dict.get("item_initialization") is not None:
        raise ConfigError(f"item_initialization: {why}; use normal")
    config.notes.append(f"item_initialization: normal; {why}")
    final["item_initialization"] = "normal"


def cooccurrence_counts(
    dataset: SequentialDataset | TargetDataset, most: int = MOST_TARGETS
) -> csr_array:
    """How often items are near each other: the sum of 1 / distance over all pairs of a training
    target and an item of its history, both ways.

    Args:
        dataset: the train split, RecBole's ``SequentialDataset`` or a :class:`.TargetDataset`.
        most: of more targets than this, about as many are drawn.

    Returns:
        A symmetric ``scipy.sparse.csr_array``, (n_items, n_items).
    """
    from scipy.sparse import coo_array

    drawn = None
    if len(dataset.inter_feat) > most:
        chance = most / len(dataset.inter_feat)
        drawn = np.random.default_rng(0).random(len(dataset.inter_feat), np.float32) < chance
    items, others, weights = [], [], []
    for distance in range(1, WINDOW + 1):
        earlier, target = _pairs(dataset, distance, drawn)
        items.append(earlier.astype(np.int32))
        others.append(target.astype(np.int32))
        weights.append(np.full(len(target), 1.0 / distance))
    pairs = np.concatenate(items), np.concatenate(others)
    counts = coo_array((np.concatenate(weights), pairs), shape=(dataset.item_num,) * 2).tocsr()
    return counts + counts.T


def _pairs(
    dataset: SequentialDataset | TargetDataset, distance: int, drawn: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Items at a distance before training targets, and the targets: two arrays, (pairs,).

    Args:
        drawn: which rows of ``dataset`` are read, (rows,) bool; None for all.
    """
    rows, item = dataset.inter_feat, dataset.iid_field
    if isinstance(dataset, TargetDataset):
        enough = dataset.lengths() >= distance
        target = rows[POSITION].numpy()[enough if drawn is None else enough & drawn]
        items = dataset.timeline[item].numpy()
        return items[target - distance], items[target]
    length = rows[dataset.item_list_length_field].numpy()
    enough = length >= distance
    long_enough = np.flatnonzero(enough if drawn is None else enough & drawn)
    histories = rows[getattr(dataset, f"{item}_list_field")].numpy()
    earlier = histories[long_enough, length[long_enough] - distance]
    return earlier, rows[item].numpy()[long_enough]


def item_vectors(counts: csr_array, width: int, show_progress: bool = False) -> np.ndarray:
    """Vectors of items, alike where items have the same neighbours: of positive mutual information.

    Args:
        counts: :func:`cooccurrence_counts`, (n_items, n_items).
        width: of a vector.
        show_progress: a bar over the passes of the randomized decomposition.

    Returns:
        (n_items, at most width), the leading singular vectors, each times the square root of its
        singular value; zeros where an item has no pair. Fewer than width where there are fewer
        items, or where a pass of the randomized decomposition would take long.
    """
    pairs = counts.tocoo()
    row, column = pairs.row, pairs.col
    item = np.asarray(counts.sum(axis=1))
    other = item**SMOOTHING
    # log(p(i, j) / (p(i) p(j)))
    information = np.log(pairs.data / (item[row] * (other / other.sum())[column]))
    pairs.data = np.maximum(information, 0.0)
    n_items = len(item)
    if n_items <= max(FEW_ITEMS, 2 * width):
        left, values, _ = np.linalg.svd(pairs.toarray())
    else:
        matrix = pairs.tocsr()
        matrix.eliminate_zeros()
        if matrix.nnz == 0:  # no pair is more frequent than chance has it
            return np.zeros((n_items, width))
        left, values = _leading_part(matrix, width, show_progress)
    leading = np.argsort(-values)[:width]
    return left[:, leading] * np.sqrt(values[leading])


def _leading_part(
    matrix: csr_array, width: int, show_progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The leading left singular vectors of a large sparse matrix and their values, in any order."""
    from scipy.sparse.linalg import ArpackError, svds

    n_items = matrix.shape[0]
    work = (2 + RESTARTS) * width * (matrix.nnz + 2 * width * n_items)
    if work <= MOST_WORK:
        # A start of our own: scipy's default would draw from numpy's global state.
        start = np.random.RandomState(0).rand(n_items)
        try:
            left, values, _ = svds(matrix, k=width, v0=start, maxiter=RESTARTS)
            return left, values
        except ArpackError:
            pass  # nothing stands out: which vectors lead hardly matters
    number = int(min(width + MORE_VECTORS, MOST_OF_A_PASS // max(matrix.nnz, 10 * n_items)))
    logger.info(
        "item_initialization: %d leading vectors of %s mutual informations of %s items, by a "
        "randomized decomposition in %d passes",
        min(width, number), f"{matrix.nnz:,}", f"{n_items - 1:,}", 2 * POWER + 2,
    )  # fmt: skip
    return randomized_left_part(matrix.astype(np.float32), max(number, 1), show_progress)


def randomized_left_part(
    matrix: csr_array, number: int, show_progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Approximate left singular vectors and values of ``matrix`` from products with ``number``
    random vectors; exact where its rank is not above that.

    Returns:
        ``(left, values)``, (rows, r) and (r,), rising; r is the rank if that is below ``number``.
    """
    vectors = np.random.default_rng(0).standard_normal((matrix.shape[1], number), matrix.dtype)
    products = [matrix, *[matrix.T, matrix] * POWER]
    with tqdm(
        total=len(products) + 1, desc="co-occurrence", disable=not show_progress, ncols=100
    ) as bar:
        for by in products:
            vectors = by @ vectors
            basis, spread = _principal_axes(vectors)
            vectors = vectors @ (basis / np.sqrt(spread)).astype(vectors.dtype)  # orthonormal
            bar.update()
        # Within them, the matrix is vectors @ vectors.T @ matrix.
        basis, spread = _principal_axes(matrix.T @ vectors)
        bar.update()
    return vectors @ basis.astype(vectors.dtype), np.sqrt(spread)


def _principal_axes(vectors: np.ndarray, rows: int = 2**16) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvectors of ``vectors.T @ vectors`` and their eigenvalues, those next to nothing left
    out. (A QR decomposition of the vectors takes ten times as long.)"""
    gram = np.zeros((vectors.shape[1],) * 2)
    for start in range(0, len(vectors), rows):
        part = vectors[start : start + rows].astype(np.float64)
        gram += part.T @ part
    spread, basis = np.linalg.eigh(gram)
    kept = spread > 1e-10 * spread[-1]
    return basis[:, kept], spread[kept]


@torch.no_grad()
def initialize_items(
    embedding: torch.nn.Embedding,
    dataset: SequentialDataset | TargetDataset,
    spread: float | torch.Tensor | None = None,
    show_progress: bool = False,
) -> int:
    """Start ``embedding``, in place, from :func:`item_vectors` of the train split ``dataset``.

    The vectors are turned at random, by torch's generator, so that no dimension is special. Items
    without a pair keep their rows.

    Args:
        spread: root mean square of what is written; that of what was there if None.
        show_progress: see :func:`item_vectors`.

    Returns:
        How many items have a new row.
    """
    begin, targets = time.perf_counter(), len(dataset.inter_feat)
    part = "" if targets <= MOST_TARGETS else f", a sample of {MOST_TARGETS:,} of them"
    logger.info(
        "item_initialization: reading which of %s items stand near each other at %s training "
        "targets%s", f"{dataset.item_num - 1:,}", f"{targets:,}", part,
    )  # fmt: skip
    counts = cooccurrence_counts(dataset)
    known = torch.from_numpy(np.flatnonzero(np.diff(counts.indptr)))
    if len(known) == 0:
        return 0
    weight = embedding.weight
    vectors = torch.from_numpy(item_vectors(counts, weight.shape[1], show_progress))
    vectors = vectors.to(weight)[known]
    if not vectors.any():  # no pair is more frequent than chance has it
        return 0
    rotation = torch.linalg.qr(torch.randn(weight.shape[1], weight.shape[1]))[0].to(weight)
    vectors = vectors @ rotation[: vectors.shape[1]]
    if spread is None:
        spread = weight[known].square().mean().sqrt()
    weight[known] = vectors * (spread / vectors.square().mean().sqrt())
    logger.info(
        "item_initialization: %s of %s items have pairs; %.1f s",
        f"{len(known):,}", f"{dataset.item_num - 1:,}", time.perf_counter() - begin,
    )  # fmt: skip
    return len(known)
