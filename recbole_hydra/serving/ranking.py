"""Which items are best for users, by what is known of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, cast

import numpy as np
import torch

from recbole_hydra.errors import ConfigError, DatasetError
from recbole_hydra.model.sequential_recommender.base import CausalRecommender
from recbole_hydra.serving.eight_bit import EightBitTable
from recbole_hydra.serving.index import LARGE, ItemIndex, open_index
from recbole_hydra.serving.item_filter import ItemFilter, Paths
from recbole_hydra.serving.recommend import candidate_range, scores_of
from recbole_hydra.serving.top_k import Offsets, top_k

logger = logging.getLogger(__name__)

#: Users up to which a large table is looked at for one after the other, through its copy: for more,
#: one product of all is faster.
FEW = 3


class Recommendations(list[tuple[str, float]]):
    """``(raw item id, score)`` pairs, best first.

    Attributes:
        fallback: "popular" where nothing is known of the user, and the items are those that most
            had in training, with their number as the score; None otherwise.
    """

    fallback: str | None = None


class Ranking:
    """The items of a trained model, ranked for users.

    Args:
        model: from :func:`~recbole_hydra.load_model`.
        trained: the histories of the training data, items and where each user's begin; None where
            the checkpoint has none.
        window: how many of a history's last items the model reads; None for all.
        items: the ``.item`` file that filters read, as :class:`.ItemFilter` takes it.

    Attributes:
        tokens: raw ids of items. table: their vectors, (n_items, width), None where the model has
            none.
        index: what finds candidates among them; None where all are looked at.
    """

    def __init__(
        self,
        model: Any,
        trained: tuple[np.ndarray, np.ndarray] | None,
        window: int | None,
        items: Paths | None = None,
    ) -> None:
        self._model, self._window = model, window
        about: Mapping[str, Any] = model.checkpoint
        self._config, self._vocabulary = about["config"], about["vocabulary"]
        self._filtered = ItemFilter(self._config, self._vocabulary, items, about["path"])
        self.index: ItemIndex | None = None
        self._copy: EightBitTable | None = None
        self.tokens = self._vocabulary.field2id_token[self._vocabulary.iid_field]
        self._ids = self._vocabulary.field2token_id[self._vocabulary.iid_field]
        self.table: np.ndarray | None = None  # what states are compared with
        if isinstance(model, CausalRecommender):
            with torch.no_grad():
                self.table = np.ascontiguousarray(model.item_table.detach().float().cpu().numpy())
        had = trained[0] if trained is not None else np.empty(0, np.int64)
        self._popular = np.bincount(had, minlength=len(self.tokens)).astype(np.float32)

    def open_index(self, kind: str | None, users: Callable[[int], np.ndarray] | None) -> None:
        """Look at candidates of an index from now on, not at all items.

        Args:
            kind: of :func:`.index.check_kind`.
            users: makes vectors of at most so many users; None where the model has no such.

        Raises:
            ConfigError: an index of a model without vectors.
        """
        domains = getattr(self._vocabulary, "domains", None)
        ranges = [(1, len(self.tokens))] if domains is None else domains.ranges()
        if self.table is None or users is None:
            if kind not in (None, "auto"):
                raise ConfigError(
                    f"index: {type(self._model).__name__} scores all items by itself, so there is "
                    "nothing to look up; leave index out"
                )
            return
        if kind is None and max(end - begin for begin, end in ranges) >= LARGE:
            logger.info(
                "index: all of %s items are looked at; index='auto' looks at the nearest",
                f"{len(self.tokens) - 1:,}",
            )
        path = self._model.checkpoint["path"]
        self.index = open_index(kind, self.table, ranges, path, users)

    def names(self) -> dict[str, str]:
        """What items are called, by raw id; see :meth:`.ItemFilter.names`."""
        return self._filtered.names()

    def id_of(self, item: object, where: str = "") -> int:
        """The internal id of an item.

        Raises:
            DatasetError: the model does not know it; ``where`` goes before the message.
        """
        known = self._ids.get(str(item))
        if not known:
            raise DatasetError(
                f"{where}{self._vocabulary.iid_field} {item!r}: the model does not know this item"
            )
        return known

    def of_histories(
        self,
        histories: Sequence[np.ndarray],
        vectors: np.ndarray | None,
        k: int,
        exclude_history: bool,
        domain: str | None,
        candidates: Iterable[str | int] | None,
        filter: Mapping[str, Any] | None,
        users: Sequence[int] | None = None,
    ) -> list[Recommendations]:
        """:meth:`best`, by raw ids."""
        ids, scores = self.best(
            histories, vectors, k, exclude_history, domain, candidates, filter, users
        )
        found = [self._named(*row) for row in zip(ids, scores, strict=True)]
        for history, named in zip(histories, found, strict=True):
            named.fallback = None if len(history) else "popular"
        return found

    def best(
        self,
        histories: Sequence[np.ndarray],
        vectors: np.ndarray | None,
        k: int,
        exclude_history: bool = False,
        domain: str | None = None,
        candidates: Iterable[str | int] | None = None,
        filter: Mapping[str, Any] | None = None,
        users: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items after each history, internal ids; after none, popular ones.

        Args:
            vectors: of those that are not empty, (rows, width); None for a model that scores all
                items by itself.
            users: internal ids, for models that read them; 0, nobody, by default.

        Returns:
            Internal ids and scores, both (histories, k), best first; where there are fewer, scores
            are ``-inf``.

        Raises:
            ConfigError, DatasetError: as of :meth:`.Recommender.recommend`.
        """
        allowed = self._allowed(candidates, filter)
        groups: dict[tuple[int, int, bool], list[int]] = {}
        for i, history in enumerate(histories):
            begin, end = self._range(history, domain)
            _check_k(k, end - begin)
            groups.setdefault((begin, end, len(history) > 0), []).append(i)
        place = np.cumsum([len(history) > 0 for history in histories]) - 1
        ids = np.empty((len(histories), int(k)), np.int64)
        scores = np.empty((len(histories), int(k)), np.float32)
        for (begin, end, something), rows in groups.items():
            if something:
                own = None if vectors is None else vectors[place[rows]]
                mine = [histories[i] for i in rows]
                who = [0] * len(rows) if users is None else [users[i] for i in rows]
                ids[rows], scores[rows] = self._best(
                    mine, own, who, (begin, end), int(k), exclude_history, allowed
                )
            else:
                ids[rows], scores[rows] = self._popular_items((begin, end), int(k), allowed)
        return ids, scores

    def _allowed(
        self, candidates: Iterable[str | int] | None, filter: Mapping[str, Any] | None
    ) -> np.ndarray | None:
        """Which items may be there, (n_items,) bool; None for all."""
        allowed = None if filter is None else self._filtered.allowed(filter)
        if candidates is not None:
            named = np.zeros(len(self.tokens), bool)
            each = listed("candidates", candidates, "item ids")
            named[[self.id_of(item, "candidates: ") for item in each]] = True
            allowed = named if allowed is None else allowed & named
        return allowed

    def _range(self, history: np.ndarray, domain: str | None) -> tuple[int, int]:
        if domain is None and not len(history):
            return 1, len(self.tokens)
        return candidate_range(self._vocabulary, history[-1:].tolist(), domain)  # the last one's

    def _best(
        self,
        histories: Sequence[np.ndarray],
        vectors: np.ndarray | None,
        users: Sequence[int],
        items: tuple[int, int],
        k: int,
        exclude_history: bool,
        allowed: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores, (users, k)."""
        if vectors is not None and self.table is not None:
            offsets = self._offsets(histories, exclude_history)
            if self.index is not None and allowed is None:
                return self.index.top_k(vectors, k, items, offsets)
            if len(vectors) <= FEW and len(self.table) >= LARGE:
                table = self._eight_bit()
                rows = zip(vectors, offsets, strict=True)
                found = [table.top_k(vector, k, items, own, allowed) for vector, own in rows]
                return np.stack([ids for ids, _ in found]), np.stack([x for _, x in found])
            return top_k(vectors, self.table, k, items, offsets, allowed)
        ids, scores = np.empty((len(histories), k), np.int64), np.empty((len(histories), k))
        for row, (history, user) in enumerate(zip(histories, users, strict=True)):
            last = (history if self._window is None else history[-self._window :]).tolist()
            with torch.no_grad():
                own = scores_of(self._model, self._config, user, last, len(self.tokens))
            own[: items[0]] = own[items[1] :] = -torch.inf
            if exclude_history:
                own[history] = -torch.inf
            if allowed is not None:
                own[torch.from_numpy(~allowed)] = -torch.inf
            best = torch.topk(own, k)
            scores[row], ids[row] = best.values.numpy(), best.indices.numpy()
        return ids, scores

    def _eight_bit(self) -> EightBitTable:
        """The copy of the table, made for the first who needs it."""
        if self._copy is None:
            self._copy = EightBitTable(cast(np.ndarray, self.table))
        return self._copy

    def _offsets(self, histories: Sequence[np.ndarray], exclude_history: bool) -> list[Offsets]:
        """What is added to the scores after each history."""
        read = [h if self._window is None else h[-self._window :] for h in histories]
        if not exclude_history:
            nothing = np.empty(0, np.int64), np.empty(0, np.float32)
            return self._model.offsets_after_each(read) or [nothing] * len(histories)
        each = [np.unique(history) for history in histories]
        left_out = [(ids, np.full(len(ids), -np.inf, np.float32)) for ids in each]
        if self._model.item_memory is None:
            return left_out
        remembered = self._model.item_memory.after_each(read)
        return list(map(_with_left_out, remembered, left_out))

    def _popular_items(
        self, items: tuple[int, int], k: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What most had in training, and how many, both (k,)."""
        counts = self._popular.copy()
        counts[: items[0]] = counts[items[1] :] = -np.inf
        if allowed is not None:
            counts[~allowed] = -np.inf
        best = np.argsort(-counts, kind="stable")[:k]
        return best, counts[best]

    def _named(self, ids: np.ndarray, scores: np.ndarray) -> Recommendations:
        pairs = zip(ids.tolist(), scores.tolist(), strict=True)
        return Recommendations(
            (str(self.tokens[item]), score) for item, score in pairs if score != -np.inf
        )

    def similar(self, item: str | int, k: int) -> Recommendations:
        """See :meth:`.Recommender.similar`."""
        known = self.id_of(item)
        if self.table is None:
            raise ConfigError(f"similar: {type(self._model).__name__} has no vectors of items")
        _check_k(k, len(self.tokens) - 2)
        length = np.linalg.norm(self.table, axis=1)
        cosines = self.table @ self.table[known] / np.maximum(length * length[known], 1e-12)
        cosines[[0, known]] = -np.inf
        best = np.argsort(-cosines, kind="stable")[: int(k)]
        return self._named(best, cosines[best])


def listed(what: str, values: Any, of: str) -> list[Any]:
    """``values`` as a list; a text is none, though its letters would do.

    Raises:
        DatasetError: they are no list.
    """
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise DatasetError(f"{what}: must be a list of {of}, got {values!r}")
    return list(values)


def _with_left_out(offsets: Offsets, left_out: Offsets) -> Offsets:
    """``offsets``, with minus infinity for the items that are left out."""
    others = ~np.isin(offsets[0], left_out[0])
    items = np.concatenate([offsets[0][others], left_out[0]])
    order = np.argsort(items)
    return items[order], np.concatenate([offsets[1][others], left_out[1]])[order]


def _check_k(k: Any, most: int) -> None:
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= int(k) <= most:
        raise ConfigError(f"k must be in 1 .. {most}, got {k!r}")
