"""Recommendations from a folder of ``recbole-hydra export``, with numpy and onnxruntime alone.

A copy of this file lies in the folder::

    from reader import Reader

    reader = Reader(".")
    reader.recommend(["242", "302"], k=10)  # [(raw item id, score), ...], best first
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

#: Of the folder; a reader takes those up to its own. The first knows no item memory.
FORMAT, BEFORE_MEMORY = 2, 1

#: What says what the folder holds, and the hash of every other file.
MANIFEST = "manifest.json"

DAMAGED = "is damaged, its hash is another; export the model once more"


class ReaderError(ValueError):
    """A folder that cannot be read, or input that cannot be used; the message is one line."""


class State(NamedTuple):
    """What a user's items so far have left; of one size, whatever their number.

    Attributes:
        position: how many items there were.
        values: the layers' states, (1, size) float32.
        recent: the last items, internal ids, as many as the model reads of a history; empty where
            it reads all.
        stack: which of the model's graphs reads on.
    """

    position: int
    values: np.ndarray
    recent: tuple[int, ...]
    stack: int


class Reader:
    """An exported model.

    Args:
        folder: written by ``recbole-hydra export``.
        threads: of ONNX Runtime, for one call; calls may come from several threads.

    Attributes:
        manifest: what is said of the model, a dict.
        tokens: raw item ids by internal id; that of the padding, 0, is no item.
        items: the vectors that a user's vector is compared with, (n_items, width) float32.
        window: how many of a history's last items are read; None for all.

    Raises:
        ReaderError: no export, one of a newer format, or a file that is missing or was changed.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int = 1) -> None:
        self._folder = Path(folder)
        self.manifest = _manifest(self._folder)
        about = self.manifest
        _check(self._folder, about["sha256"])
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        text = (self._folder / about["vocabulary"]).read_text(encoding="utf-8")
        self.tokens: list[str] = json.loads(text)
        self._ids = {token: i for i, token in enumerate(self.tokens) if i}
        self.items: np.ndarray = np.load(self._folder / about["item_vectors"], mmap_mode="r")
        self.window: int | None = about["window"]
        bias = about["repeat_bias"]
        self._bias = None if bias is None else np.load(self._folder / bias["file"])
        self._memory = about.get("item_memory")
        if self._memory is not None:
            names = ("starts", "items", "values")
            self._map = [np.load(self._folder / self._memory[name]) for name in names]
        self._first_items = np.array([graph["first_item"] for graph in about["graphs"]])

    # -- recommendations -----------------------------------------------------------------------

    def recommend(
        self,
        history: Iterable[str | int],
        k: int = 10,
        exclude_history: bool = False,
        domain: str | None = None,
    ) -> list[tuple[str, float]]:
        """The ``k`` best items for somebody who had ``history``, raw ids, oldest first.

        Args:
            exclude_history: leave the items of the history out.
            domain: of a model of several domains, the one whose items are recommended; by default
                that of the history's last item.

        Returns:
            ``[(raw item id, score), ...]``, best first.

        Raises:
            ReaderError: an empty history or an unknown item, ``k`` out of range, another domain.
        """
        ids = self._known(history)
        return self._best(self._vector(ids), ids, k, exclude_history, domain)

    def vector(self, history: Iterable[str | int]) -> np.ndarray:
        """The vector after a history, raw ids, (width,); errors as of :meth:`recommend`."""
        return self._vector(self._known(history))

    def start(self) -> State:
        """The state before a user's first item."""
        return State(0, np.zeros((1, self.manifest["state_size"]), np.float32), (), 0)

    def step(self, item: str | int, state: State) -> tuple[np.ndarray, State]:
        """Read one more item, a raw id, of a user.

        Returns:
            The vector after it, (width,), and the new state; the one given stays as it is.

        Raises:
            ReaderError: an unknown item.
        """
        known, position = self._known([item])[0], state.position + 1
        recent = () if self.window is None else (*state.recent, int(known))[-self.window :]
        if self.window is not None and position > self.window:
            # The first items are out of the window, and a state cannot forget: read it anew.
            vector = self._vector(np.array(recent))
            return vector, State(position, state.values, recent, state.stack)
        stack = state.stack if state.position else self._stack(known)
        given = {"item": np.array([known]), "state": state.values}
        vectors, values = self._run("step", stack, given)
        return vectors[0], State(position, values, recent, stack)

    def top_k(
        self,
        vector: np.ndarray,
        history: Iterable[str | int],
        k: int = 10,
        exclude_history: bool = False,
        domain: str | None = None,
    ) -> list[tuple[str, float]]:
        """:meth:`recommend`, by the vector of :meth:`step` and the same user's whole history."""
        return self._best(vector, self._known(history), k, exclude_history, domain)

    # -- inside --------------------------------------------------------------------------------

    def _known(self, history: Iterable[str | int]) -> np.ndarray:
        """Internal ids of a history."""
        if isinstance(history, (str, bytes, Mapping)) or not isinstance(history, Iterable):
            raise ReaderError(f"history: must be a list of item ids, got {history!r}")
        ids = []
        for item in history:
            if str(item) not in self._ids:
                raise ReaderError(f"history: item {item!r}: the model does not know it")
            ids.append(self._ids[str(item)])
        if not ids:
            raise ReaderError("history: it is empty; a recommendation needs at least one item")
        return np.array(ids, np.int64)

    def _read(self, ids: np.ndarray) -> np.ndarray:
        """The items of a history that the model reads."""
        return ids if self.window is None else ids[-self.window :]

    def _stack(self, first: int) -> int:
        """The graphs that read a history that begins with an item."""
        return max(int(np.searchsorted(self._first_items, first, side="right")) - 1, 0)

    def _vector(self, ids: np.ndarray) -> np.ndarray:
        ids = self._read(ids)
        given = {"items": ids[None], "lengths": np.array([len(ids)])}
        return self._run("history", self._stack(ids[0]), given)[0][0]

    def _run(self, kind: str, stack: int, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Compute a graph, which is loaded when it is needed first."""
        file = self.manifest["graphs"][stack][kind]
        if file not in self._sessions:
            path = str(self._folder / file)
            self._sessions[file] = onnxruntime.InferenceSession(
                path, self._options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[file].run(None, given)

    def _best(
        self, vector: np.ndarray, ids: np.ndarray, k: int, exclude: bool, domain: str | None
    ) -> list[tuple[str, float]]:
        begin, end = self._range(int(ids[-1]), domain)
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= end - begin:
            raise ReaderError(f"k must be in 1 .. {end - begin}, got {k!r}")
        scores = self.items[begin:end] @ vector
        bias = (np.unique(ids), -np.inf) if exclude else self._repeat_bias(ids)
        for items, amounts in (self._remembered(ids), bias):
            inside = (items >= begin) & (items < end)
            amounts = np.broadcast_to(np.float32(amounts), items.shape)
            scores[items[inside] - begin] += amounts[inside]
        best = np.argpartition(-scores, k - 1)[:k]
        best = best[np.argsort(-scores[best], kind="stable")]
        found = zip(best.tolist(), scores[best].tolist(), strict=True)
        return [(self.tokens[begin + i], score) for i, score in found if score != -np.inf]

    def _range(self, last: int, domain: str | None) -> tuple[int, int]:
        """The internal ids that are recommended."""
        domains = self.manifest["domains"]
        if domains is None:
            if domain is not None:
                raise ReaderError(f"domain: this model has no domains, got {domain!r}")
            return 1, len(self.tokens)
        for one in domains:
            is_last_one_s = one["first_item"] <= last < one["end"]
            if one["name"] == domain or (domain is None and is_last_one_s):
                return one["first_item"], one["end"]
        names = ", ".join(one["name"] for one in domains)
        raise ReaderError(f"domain must be one of {names}, got {domain!r}")

    def _repeat_bias(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct items of a history, and what is added to their scores."""
        if self._bias is None:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        items, back = np.unique(self._read(ids)[::-1], return_index=True)  # 0 back is the last
        form = self.manifest["repeat_bias"]["form"]
        if form == "item":
            return items, self._bias[items]
        if form == "shared":
            return items, np.broadcast_to(self._bias, items.shape)
        # By distance: 1, 2 to 3, 4 to 7 and so on steps back; frexp's exponents are exact.
        kinds = np.frexp((back + 1).astype(np.float32))[1] - 1
        return items, self._bias[np.minimum(kinds, len(self._bias) - 1)]

    def _remembered(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct items that the memory of a history has, and what is added to their scores:
        weight log(1 + m / scale), m the sum of decay^k B[i] over its items i, k steps back."""
        memory = self._memory
        if memory is None:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        starts, items, values = self._map
        read = self._read(ids)[-memory["horizon"] :]
        forgotten = memory["decay"] ** np.arange(len(read))[::-1]
        own = [slice(starts[item], starts[item + 1]) for item in read]
        said = [values[part] * g for part, g in zip(own, forgotten.astype(np.float32), strict=True)]
        found, where = np.unique(np.concatenate([items[part] for part in own]), return_inverse=True)
        m = np.bincount(where, np.concatenate(said), minlength=len(found))
        known = m > 0
        return found[known], memory["weight"] * np.log1p(m[known] / memory["scale"])


def _manifest(folder: Path) -> dict[str, Any]:
    """What a folder says of itself."""
    path = folder / MANIFEST
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ReaderError(f"{path}: is no export of recbole-hydra ({why})") from error
    written = about.get("format") if isinstance(about, dict) else None
    if not isinstance(written, int):
        raise ReaderError(f"{path}: is no export of recbole-hydra (it names no format)")
    if written > FORMAT:
        raise ReaderError(
            f"{path}: is of format {written}, newer than {FORMAT}, which this reader knows; "
            "use the reader.py of that folder"
        )
    if about.get("own_sha256") != hash_of(about):
        raise ReaderError(f"{path}: {DAMAGED}")
    return about


def hash_of(manifest: Mapping[str, Any]) -> str:
    """The hash of a manifest, but for the hash in it."""
    rest = {key: value for key, value in manifest.items() if key != "own_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _check(folder: Path, hashes: Mapping[str, str]) -> None:
    """Refuse files that are not what was written."""
    for name, expected in hashes.items():
        if name == "reader.py":  # whoever reads may have changed it
            continue
        found = hashlib.sha256()
        try:
            with open(folder / name, "rb") as file:
                while block := file.read(1 << 20):
                    found.update(block)
        except OSError as error:
            raise ReaderError(f"{folder / name}: cannot be read ({error.strerror})") from error
        if found.hexdigest() != expected:
            raise ReaderError(f"{folder / name}: {DAMAGED}")
