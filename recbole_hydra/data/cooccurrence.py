"""Vectors of items from which of them stand near each other in the training histories.

They are a truncated singular value decomposition of the positive pointwise mutual information of
items: what skip-gram with negative sampling, item2vec (Barkan and Koenigstein 2016, arXiv
1603.04259), factorises step by step (Levy and Goldberg 2014). A model that starts from them knows
at once what one that starts from noise has to find out from a handful of interactions per item.
"""

import numpy as np
import torch

from recbole_hydra.data.targets import POSITION, TargetDataset

#: Items up to this far apart count as near, in inverse proportion to the distance.
WINDOW = 5

#: The power of an item's frequency as the other of a pair; below 1 it keeps the mutual information
#: with rare items from being large by chance (Levy, Goldberg and Dagan 2015).
SMOOTHING = 0.75

#: Below this many items the whole decomposition is quicker than the leading part of it.
FEW_ITEMS = 512


def cooccurrence_counts(dataset):
    """How often items are near each other: the sum of 1 / distance over all pairs of a training
    target and an item of its history, both ways.

    Args:
        dataset: the train split, RecBole's ``SequentialDataset`` or a :class:`.TargetDataset`.

    Returns:
        A symmetric ``scipy.sparse.csr_array``, (n_items, n_items).
    """
    from scipy.sparse import coo_array

    items, others, weights = [], [], []
    for distance in range(1, WINDOW + 1):
        earlier, target = _pairs(dataset, distance)
        items.append(earlier)
        others.append(target)
        weights.append(np.full(len(target), 1.0 / distance))
    pairs = np.concatenate(items), np.concatenate(others)
    counts = coo_array((np.concatenate(weights), pairs), shape=(dataset.item_num,) * 2).tocsr()
    return counts + counts.T


def _pairs(dataset, distance):
    """Items at a distance before training targets, and the targets: two arrays, (pairs,)."""
    rows, item = dataset.inter_feat, dataset.iid_field
    if isinstance(dataset, TargetDataset):
        target = rows[POSITION].numpy()[dataset.lengths() >= distance]
        items = dataset.timeline[item].numpy()
        return items[target - distance], items[target]
    length = rows[dataset.item_list_length_field].numpy()
    long_enough = np.flatnonzero(length >= distance)
    histories = rows[getattr(dataset, f"{item}_list_field")].numpy()
    earlier = histories[long_enough, length[long_enough] - distance]
    return earlier, rows[item].numpy()[long_enough]


def item_vectors(counts, width: int) -> np.ndarray:
    """Vectors of items, alike where items have the same neighbours: of positive mutual information.

    Args:
        counts: :func:`cooccurrence_counts`, (n_items, n_items).
        width: of a vector.

    Returns:
        (n_items, min(width, n_items)), the leading singular vectors, each times the square root of
        its singular value; zeros where an item has no pair.
    """
    from scipy.sparse.linalg import svds

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
        # A start of our own: scipy's default would draw from numpy's global state.
        start = np.random.RandomState(0).rand(n_items)
        left, values, _ = svds(pairs.tocsr(), k=width, v0=start)
    leading = np.argsort(-values)[:width]
    return left[:, leading] * np.sqrt(values[leading])


@torch.no_grad()
def initialize_items(embedding, dataset, spread=None) -> int:
    """Start ``embedding``, in place, from :func:`item_vectors` of the train split ``dataset``.

    The vectors are turned at random, by torch's generator, so that no dimension is special. Items
    without a pair keep their rows.

    Args:
        spread: root mean square of what is written; that of what was there if None.

    Returns:
        How many items have a new row.
    """
    counts = cooccurrence_counts(dataset)
    known = torch.from_numpy(np.flatnonzero(np.diff(counts.indptr)))
    if len(known) == 0:
        return 0
    weight = embedding.weight
    vectors = torch.from_numpy(item_vectors(counts, weight.shape[1])).to(weight)[known]
    if not vectors.any():  # no pair is more frequent than chance has it
        return 0
    rotation = torch.linalg.qr(torch.randn(weight.shape[1], weight.shape[1]))[0].to(weight)
    vectors = vectors @ rotation[: vectors.shape[1]]
    if spread is None:
        spread = weight[known].square().mean().sqrt()
    weight[known] = vectors * (spread / vectors.square().mean().sqrt())
    return len(known)
