"""An index of a large catalogue: the best items without a look at all, from faiss.

The candidates come from faiss, their scores and what is added to them are computed here. How far
the index looks is measured when it is built, on users of the model: as far as they need to find of
their best ten and their best hundred the share :data:`AIM`. Built once, it is a file beside the
checkpoint.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from recbole_hydra.errors import ConfigError
from recbole_hydra.serving.top_k import Offsets, top_k

logger = logging.getLogger(__name__)

#: What can be asked for: cells of items that lie together, the nearest of which are looked through
#: (benchmarks/index.py has it against others). "auto" is the first, from :data:`LARGE` items.
KINDS: tuple[str, ...] = ("ivf",)

#: Items from which an index is worth its file.
LARGE = 100_000

#: The share of the exact best that users have to find, when it is built, among their best 10 and
#: MOST; more than MOST are ranked exactly.
AIM, MOST = 0.993, 100

#: Most items that an index is asked for at once: with a longer history, all are ranked.
FURTHEST = 1024

#: Users that it is measured on.
USERS = 512

#: The last bytes of a file, after their number in eight bytes what it is of; before that, what
#: faiss wrote.
MARK, VERSION = b"recbole_hydra", 1


@dataclass(frozen=True)
class Part:
    """The index of a range of items.

    Attributes:
        items: first internal id, and one behind the last.
        index: of faiss. reach: how many of its cells are looked through.
        recall: the share found of the best 10, and of the best MOST.
    """

    items: tuple[int, int]
    index: Any
    reach: int
    recall: tuple[float, float]


class ItemIndex:
    """Candidates of an index, ranked exactly.

    Args:
        kind: of :data:`KINDS`.
        table: of the items, (n_items, width) float32.
        parts: indexes of ranges; items of another range are all ranked.
    """

    def __init__(self, kind: str, table: np.ndarray, parts: Sequence[Part]) -> None:
        self.kind, self._table = kind, table
        self.parts = {part.items: part for part in parts}

    def top_k(
        self, vectors: np.ndarray, k: int, items: tuple[int, int], offsets: Sequence[Offsets]
    ) -> tuple[np.ndarray, np.ndarray]:
        """:func:`.top_k.top_k`, where items outside of the offsets are those the index finds.

        It is asked for ``k`` and as many more as there are offsets, which are candidates
        themselves. Rows for which it does not find enough are ranked exactly.

        Returns:
            ``(ids, scores)``, both (rows, k), best first, as ``top_k`` has them.
        """
        part = self.parts.get(items)
        ids = np.full((len(vectors), k), -1, np.int64)
        scores = np.full((len(vectors), k), -np.inf, np.float32)
        asked = k + np.array([len(own) for own, _ in offsets], np.int64)
        rows = np.flatnonzero(asked <= FURTHEST)
        if part is not None and k <= MOST and len(rows):
            number = min(int(asked[rows].max()), items[1] - items[0])
            found = search(part.index, vectors[rows], number, part.reach)
            for row, near in zip(rows.tolist(), found, strict=True):
                candidates = near[near >= 0] + items[0]
                best, its = self._ranked(vectors[row], candidates, k, items, offsets[row])
                ids[row, : len(best)], scores[row, : len(best)] = best, its
        left = np.flatnonzero(scores[:, -1] == -np.inf)
        if len(left):
            own = [offsets[i] for i in left.tolist()]
            ids[left], scores[left] = top_k(vectors[left], self._table, k, items, own)
        return ids, scores

    def _ranked(
        self,
        vector: np.ndarray,
        candidates: np.ndarray,
        k: int,
        items: tuple[int, int],
        offsets: Offsets,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best of candidates and of the items that have offsets, at most k."""
        own, amounts = offsets
        inside = (own >= items[0]) & (own < items[1])
        ids = np.union1d(candidates, own[inside])
        scores = self._table[ids] @ vector
        scores[np.searchsorted(ids, own[inside])] += amounts[inside]
        best = np.argsort(-scores, kind="stable")[:k]
        return ids[best], scores[best]


def _faiss() -> Any:
    """faiss, whose types differ from version to version."""
    return importlib.import_module("faiss")


def check_kind(kind: Any) -> str | None:
    """``kind`` if it can be asked for, "auto" and None, exact, among them.

    Raises:
        ConfigError: it cannot, or faiss is not installed.
    """
    if kind is None:
        return None
    if kind != "auto" and kind not in KINDS:
        raise ConfigError(f"index must be one of auto, {', '.join(KINDS)}, None, got {kind!r}")
    try:
        _faiss()
    except ImportError as error:
        raise ConfigError(
            "index: faiss is not installed; pip install 'recbole-hydra[index]'"
        ) from error
    return str(kind)


def open_index(
    kind: str | None,
    table: np.ndarray,
    ranges: Sequence[tuple[int, int]],
    checkpoint: str | os.PathLike[str],
    users: Callable[[int], np.ndarray],
) -> ItemIndex | None:
    """The index of a model's items, from its file or built.

    Args:
        kind: of :func:`check_kind`. "auto" takes the ranges of at least :data:`LARGE` items; None
            where there is no such.
        table: of the items, (n_items, width) float32.
        ranges: of the items that are ranked together, first and one behind the last.
        checkpoint: path of the model; the file is ``CHECKPOINT.KIND.faiss``.
        users: makes vectors of at most so many users, (users, width), that it is measured on;
            called where it has to be built.
    """
    if kind is None:
        return None
    if kind == "auto":
        kind = KINDS[0]
        ranges = [(begin, end) for begin, end in ranges if end - begin >= LARGE]
    ranges = [(begin, end) for begin, end in ranges if end > begin]
    if not ranges:
        return None
    path = Path(f"{os.fspath(checkpoint)}.{kind}.faiss")
    wanted = {"version": VERSION, "kind": kind, "items": [list(r) for r in ranges],
              "table": _hash(table)}  # fmt: skip
    parts = _read(path, wanted)
    if parts is None:
        vectors = np.ascontiguousarray(users(USERS), np.float32)
        parts = [build(kind, table, items, vectors) for items in ranges]
        _write(path, wanted, parts)
    return ItemIndex(kind, table, parts)


def build(kind: str, table: np.ndarray, items: tuple[int, int], vectors: np.ndarray) -> Part:
    """Build the index of a range of items, and measure how far it has to look.

    Args:
        kind: of :data:`KINDS`.
        table: of the items, (n_items, width). vectors: of users, (users, width); both float32.
    """
    faiss = _faiss()
    own = np.ascontiguousarray(table[items[0] : items[1]])
    number, width = own.shape
    cells = max(1, min(int(4 * np.sqrt(number)), number // 39))  # with fewer faiss warns
    logger.info("index: building %s of %s items, once", kind, f"{number:,}")
    with _threads(torch.get_num_threads()):
        # Cells by distance, and the search by inner product: a long centre would draw all items.
        means = faiss.Kmeans(width, cells, niter=10, max_points_per_centroid=50)
        means.train(own)
        cell_of = np.ascontiguousarray(means.index.search(own, 1)[1][:, 0])
        centres = faiss.IndexFlatIP(width)
        centres.add(means.centroids)
        index = faiss.IndexIVFFlat(centres, width, cells, faiss.METRIC_INNER_PRODUCT)
        index.is_trained = True
        index.add_core(number, faiss.swig_ptr(own), None, faiss.swig_ptr(cell_of))
    sizes = [min(size, number) for size in (10, MOST)]
    truth, _ = top_k(vectors, table, sizes[1], items)
    recall = (0.0, 0.0)
    for reach in _steps(1, cells):
        found = search(index, vectors, sizes[1], reach) + items[0]
        recall = _recall(found, truth, sizes[0]), _recall(found, truth, sizes[1])
        if min(recall) >= AIM:
            break  # at the latest where it looks through all
    logger.info(
        "index: %d of %d cells have %.4f of the best 10 and %.4f of the best %d of %d users",
        reach, cells, *recall, MOST, len(vectors),
    )  # fmt: skip
    return Part(items, index, reach, recall)


def search(index: Any, vectors: np.ndarray, number: int, reach: int) -> np.ndarray:
    """What an index finds in the ``reach`` nearest cells, (rows, number), from 0 in its own range,
    -1 where it is less."""
    faiss = _faiss()
    parameters = faiss.SearchParametersIVF(nprobe=reach)
    # To wake threads for one row takes longer than the row.
    with _threads(1 if len(vectors) == 1 else torch.get_num_threads()):
        return index.search(np.ascontiguousarray(vectors), number, params=parameters)[1]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """With so many threads of faiss, which has an OpenMP of its own."""
    faiss = _faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _steps(first: int, last: int) -> list[int]:
    """Numbers that grow by about an eighth."""
    steps = [first]
    while steps[-1] < last:
        steps.append(min(last, steps[-1] + max(1, steps[-1] // 8)))
    return steps


def _recall(found: np.ndarray, truth: np.ndarray, k: int) -> float:
    """The share of the best k that is found among the first k."""
    pairs = zip(found[:, :k], truth[:, :k], strict=True)
    return float(np.mean([np.isin(wanted, own).mean() for own, wanted in pairs]))


# -- the file -------------------------------------------------------------------------------------


def _hash(table: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(table).data, digest_size=16).hexdigest()


class _Hashed:
    """A file, and the hash of what went through."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.blake2b(digest_size=16)

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def digest(self) -> str:
        return self._hash.hexdigest()


def _write(path: Path, wanted: dict[str, Any], parts: Sequence[Part]) -> None:
    """Write an index whole or not at all. Without a file it works, too, and is built again."""
    faiss = _faiss()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            body = _Hashed(file)
            for part in parts:
                faiss.write_index(part.index, faiss.PyCallbackIOWriter(body.write))
            about = {**wanted, "body": body.digest(), "size": file.tell(),
                     "reach": [part.reach for part in parts],
                     "recall": [part.recall for part in parts]}  # fmt: skip
            text = json.dumps(about).encode()
            file.write(text + len(text).to_bytes(8, "little") + MARK)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # faiss has those for what a writer raises
        temporary.unlink(missing_ok=True)
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        logger.warning("index: %s cannot be written (%s); it is built anew each time", path, why)


def _read(path: Path, wanted: dict[str, Any]) -> list[Part] | None:
    """The parts of a file; None where there is none, or it is of something else, or damaged."""
    faiss = _faiss()
    try:
        with open(path, "rb") as file:
            about = _about(file)
            if about is None:
                logger.warning("index: %s is damaged; it is built anew", path)
                return None
            if any(about.get(key) != value for key, value in wanted.items()):
                logger.info("index: %s is of another table of items; it is built anew", path)
                return None
            body = hashlib.blake2b(digest_size=16)
            file.seek(0)
            for first in range(0, about["size"], 1 << 22):
                body.update(file.read(min(1 << 22, about["size"] - first)))
            if body.hexdigest() != about["body"]:
                logger.warning("index: %s is damaged; it is built anew", path)
                return None
            file.seek(0)
            reader = faiss.PyCallbackIOReader(file.read)
            indexes = [faiss.read_index(reader) for _ in about["items"]]
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        logger.warning("index: %s cannot be read (%s); it is built anew", path, why)
        return None
    return [
        Part((int(items[0]), int(items[1])), index, int(reach), (recall[0], recall[1]))
        for items, index, reach, recall in zip(
            about["items"], indexes, about["reach"], about["recall"], strict=True
        )
    ]


def _about(file: IO[bytes]) -> dict[str, Any] | None:
    """What the end of a file says of it; None where it is no end of ours."""
    tail = len(MARK) + 8
    size = file.seek(0, io.SEEK_END)
    if size < tail:
        return None
    file.seek(size - tail)
    end = file.read(tail)
    length = int.from_bytes(end[:8], "little")
    if end[8:] != MARK or length > size - tail:
        return None
    file.seek(size - tail - length)
    try:
        about = json.loads(file.read(length))
    except ValueError:
        return None
    return about if isinstance(about, dict) else None
