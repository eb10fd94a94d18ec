"""The best items of all users, into a file, and vectors for other systems."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from recbole_hydra.errors import BulkError, ConfigError
from recbole_hydra.output_folder import OutputFolder, write_json
from recbole_hydra.serving.recommender import USERS, Recommender

#: What a call writes while it works, beside the output: parts, and in a file of this name what the
#: call is.
CALL = "call.json"

#: Of the file of recommendations.
SCHEMA = pa.schema(
    [("user", pa.string()), ("rank", pa.int32()), ("item", pa.string()), ("score", pa.float32())]
)

FOLDER = OutputFolder(
    "call",
    CALL,
    BulkError,
    describe=lambda call: f"k={call['k']}, {call['users']:,} users",
    difference=lambda mine, other, keys: ", ".join(
        f"{key} ({other.get(key)}, not {mine[key]})" for key in keys
    ),
)


def recommend_all(
    service: Recommender,
    output: str | os.PathLike[str],
    users: Sequence[str] | None = None,
    k: int = 10,
    exclude_history: bool = False,
    domain: str | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> int:
    """Write the ``k`` best items of each user to a Parquet file: user, rank from 1, item, score.

    Users go through in blocks, so that memory does not depend on their number; each block is on
    disk, in the folder ``OUTPUT.parts``, before the next. When all are, they become the file.

    Args:
        users: raw ids; by default those of the training data, in the order of their internal ids.
        k, exclude_history, domain: as of :meth:`.Recommender.recommend`.
        resume: continue a call that was killed, from the folder of its parts.

    Returns:
        The number of users.

    Raises:
        BulkError: the output is there already, cannot be written, or there is nothing to resume.
        ConfigError: as of ``recommend``.
    """
    path, parts = Path(output), Path(f"{os.fspath(output)}.parts")
    if path.exists():
        raise BulkError(f"output {path}: is there already; choose another, or remove it")
    if not path.parent.is_dir():
        raise BulkError(f"output {path}: there is no folder {path.parent}; make it")
    names = service.trained_users() if users is None else list(users)
    if not names:
        raise BulkError("users: there are none")
    service.recommend(names[0], k, exclude_history, domain)  # refuse now what cannot be
    call = {
        "model": service.states.version.hex(), "reading": service.reading, "k": int(k),
        "exclude_history": bool(exclude_history), "domain": domain, "users": len(names),
        "first_and_last": [names[0], names[-1]], "index": service.ranking.index is not None,
    }  # fmt: skip
    FOLDER.claim(parts, call, resume)
    with tqdm(total=len(names), desc="users", disable=not show_progress) as bar:
        for number, i in enumerate(range(0, len(names), USERS)):
            block, file = names[i : i + USERS], parts / f"{number:08}.parquet"
            if not file.exists():
                _write(_rows(service, block, int(k), exclude_history, domain), file)
            bar.update(len(block))
    _join(parts, path)
    shutil.rmtree(parts)
    return len(names)


def _rows(
    service: Recommender, users: Sequence[str], k: int, exclude_history: bool, domain: str | None
) -> pa.Table:
    ids, scores = service.best_ids(users, k, exclude_history, domain)
    there = scores != -np.inf
    tokens = pa.array([str(token) for token in service.ranking.tokens])
    rank = np.broadcast_to(np.arange(1, k + 1, dtype=np.int32), ids.shape)
    user = np.repeat(np.arange(len(users)), there.sum(axis=1))
    columns = [
        pa.array(users, pa.string()).take(pa.array(user)),
        pa.array(rank[there]),
        tokens.take(pa.array(ids[there])),
        pa.array(scores[there]),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _write(table: pa.Table, file: Path) -> None:
    """Write a table whole or not at all."""
    partial = file.with_suffix(".partial")
    try:
        pq.write_table(table, partial)
        os.replace(partial, file)
    except OSError as error:
        raise BulkError(f"output {file}: cannot be written ({error.strerror or error})") from error


def _join(parts: Path, path: Path) -> None:
    """Make one file of the parts, a part in memory at a time."""
    partial = Path(f"{path}.partial")
    try:
        with pq.ParquetWriter(partial, SCHEMA) as writer:
            for file in sorted(parts.glob("*.parquet")):
                writer.write_table(pq.read_table(file))
        os.replace(partial, path)
    except OSError as error:
        raise BulkError(f"output {path}: cannot be written ({error.strerror or error})") from error


def write_vectors(
    service: Recommender, folder: str | os.PathLike[str], users: Sequence[str] | None = None
) -> None:
    """Write the vectors that are compared, for other systems: ``items.parquet`` and
    ``users.parquet`` with the columns id and vector, and ``vectors.json``, which says how scores
    come of them.

    Args:
        users: as of :func:`recommend_all`; those of whom nothing is known are left out.

    Raises:
        ConfigError: a model without vectors.
        BulkError: the folder is there and not empty, or cannot be written.
    """
    if service.ranking.table is None or service.states.encoder is None:
        raise ConfigError(f"vectors: {type(service.model).__name__} has no vectors of users")
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BulkError(f"vectors {path}: holds files; choose an empty or a new folder")
    names = service.trained_users() if users is None else list(users)
    tokens = [str(token) for token in service.ranking.tokens[1:]]
    try:
        path.mkdir(parents=True, exist_ok=True)
        _write_vectors(path / "items.parquet", iter([(tokens, service.ranking.table[1:])]))
        _write_vectors(path / "users.parquet", _vectors_of(service, names))
        about: dict[str, Any] = {
            "score": "the inner product, plus, for items of the history, the repeat bias",
            "model": service.states.version.hex(),
            "width": int(service.ranking.table.shape[1]),
        }
        write_json(path / "vectors.json", about)
    except OSError as error:
        raise BulkError(f"vectors {path}: cannot be written ({error.strerror or error})") from error


def _vectors_of(
    service: Recommender, names: Sequence[str]
) -> Iterator[tuple[list[str], np.ndarray]]:
    for i in range(0, len(names), USERS):
        block = list(names[i : i + USERS])
        histories, entries = service.states.known_of(block, whole=False)
        some = [j for j, history in enumerate(histories) if len(history)]
        vectors = service.states.vectors(histories, entries)
        if vectors is not None:
            yield [block[j] for j in some], vectors


def _write_vectors(file: Path, blocks: Iterator[tuple[list[str], np.ndarray]]) -> None:
    writer = None
    for ids, vectors in blocks:
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = pa.table({"id": pa.array(ids, pa.string()), "vector": column})
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def read_users(path: str | os.PathLike[str]) -> list[str]:
    """The raw ids in a file, one a line; empty lines do not count.

    Raises:
        BulkError: it cannot be read, or holds none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise BulkError(f"users {path}: cannot be read ({why})") from error
    users = [line for line in lines if line.strip()]
    if not users:
        raise BulkError(f"users {path}: holds no ids")
    return users
