"""What causal models share, Hydra, Mamba4Rec and users' own: losses, scoring and checks around an
encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from recbole_hydra.errors import ConfigError, DatasetError
from recbole_hydra.layers import ItemMemory, kept
from recbole_hydra.model.target_losses import TargetLosses

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction
    from typing_extensions import Self

    from recbole_hydra.model.items import Items
    from recbole_hydra.ops import ScoreOffsets


class CausalRecommender(TargetLosses, SequentialRecommender, ABC):
    """A causal encoder over the item sequence, scored by inner products with the items.

    Sequences are padded on the right with item 0, as RecBole pads them. A subclass defines
    ``self.items``, what its items are, and :meth:`states`, which must be causal; it reads its
    config through :meth:`setting`, and the settings of its loss are those of Hydra
    (``properties/model/CausalRecommender.yaml``).

    Raises:
        ConfigError: an unknown ``loss_type``, or a config key that the model needs and nobody set.
    """

    def __init__(self, config: Config, dataset: Dataset, trained_only: bool = False) -> None:
        """``trained_only``: items that no training row has for its target take no part in the loss,
        not even as what the target is told apart from."""
        super().__init__(config, dataset)
        self._config = config  # read by setting() while the model is built, then dropped
        self.prepare_losses(dataset, trained_only)
        self.prepare_item_memory(config)
        if not self.OWN_REPEAT_BIAS:
            self.prepare_repeat_bias(self.setting("repeat_bias") or "none")

    #: Whether a subclass makes its repeat bias itself, as where it comes after other parameters.
    OWN_REPEAT_BIAS = False

    #: What the items so far say of the next beside the states, if it is asked for.
    item_memory: ItemMemory | None

    def prepare_item_memory(self, config: Config) -> None:
        """Make the memory that the settings ask for; it is fitted before training.

        Raises:
            ConfigError: RecBole's plain Config asks for it, whose runs would not fit it.
        """
        self.item_memory = None
        if config["item_memory"] not in (None, "none"):
            if "item_memory_solver" not in config:  # which all of ours have
                raise ConfigError(
                    f"{type(self).__name__}: an item_memory is fitted by run_recbole_hydra, and "
                    "not by runs with RecBole's plain Config; use the former, or no item_memory"
                )
            self.item_memory = ItemMemory(self.n_items, config["item_memory_decay"])

    def setting(self, key: str) -> Any:
        """Return config[key]; a key that is missing is an error, never a silent default."""
        if key not in self._config:
            name = type(self).__name__
            raise ConfigError(
                f"{name} needs the config key {key!r}: with RecBole's plain Config, put "
                f"recbole_hydra.default_config({name!r}) first in config_file_list"
            )
        return self._config[key]

    # -- what was computed of the items goes when they, or where they are, change ----------------

    #: What the items are, :class:`~recbole_hydra.model.items.Items`.
    items: Items = None  # type: ignore[assignment]

    def _forget_items(self) -> None:
        if self.items is None:
            raise ConfigError(
                f"{type(self).__name__}: what its items are is missing; in __init__, set "
                "self.items = Items(self.n_items, self.item_embedding)"
            )
        self.items.forget()

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        self._forget_items()
        return super()._apply(fn, *args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """torch's; what was computed for an evaluation is computed anew."""
        self._forget_items()
        return super().load_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as torch's; what was computed for an evaluation is computed anew."""
        super().train(mode)
        self.items.set_mode(mode)
        return self

    def add_items(self, texts: Sequence[str], place: int, config: Config) -> None:
        """Insert rows for new items, known by their texts, before the item id ``place``; nothing is
        trained, and the model cannot be any more.

        Args:
            texts: one per item. config: of the model, see :meth:`.Items.add`.
        """
        self.items.add(texts, place, config)
        if self.repeat_bias is not None:
            self.repeat_bias.add_rows(place, len(texts))
        if self.item_memory is not None:
            self.item_memory.add_rows(place, len(texts))
        self.target_groups = None  # it has no training targets any more
        self.n_items += len(texts)
        self.eval()

    # -- the encoder -----------------------------------------------------------------------------

    def states(self, item_seq: Tensor) -> Tensor:
        """Map item ids, (batch, length), to one state per position, (batch, length, width); that at
        position t depends on the items up to t only."""
        raise NotImplementedError(f"{type(self).__name__} has no method states(item_seq)")

    def encode(self, item_seq: Tensor, keep: Tensor | None = None) -> Tensor:
        """The :meth:`states`; given ``keep``, those of the positions b * length + t in it,
        (positions, width)."""
        return kept(self.states(item_seq), keep)

    @property
    def item_table(self) -> Tensor:
        """The vectors that states are compared with, (n_items, width); row 0 is padding."""
        return self.items.table

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Return the state at the last item of each sequence, (batch, width).

        Sequences of similar length are encoded together, none padded beyond the longest of them:
        most of RecBole's prefixes are far shorter than MAX_ITEM_LIST_LENGTH.
        """
        groups = similar_lengths(item_seq_len)
        states = [self._states_at_end(item_seq[rows], item_seq_len[rows]) for rows in groups]
        return torch.cat(states).index_select(0, torch.cat(groups).argsort())

    def _states_at_end(self, item_seq: Tensor, length: Tensor) -> Tensor:
        """:meth:`forward`, all sequences together."""
        longest = int(length.max())
        return self.encode(item_seq[:, :longest], keep=last_positions(length, longest))

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Mean loss of a batch of RecBole's rows: histories, their targets, BPR's negatives."""
        item_seq, targets = interaction[self.ITEM_SEQ], interaction[self.POS_ITEM_ID]
        negatives = None
        if self.loss_type == "BPR":
            negatives = interaction[self.NEG_ITEM_ID].unsqueeze(1)
        length = interaction[self.ITEM_SEQ_LEN]
        last = last_positions(length, item_seq.shape[1])
        with self.step(item_seq, targets, negatives):
            states = self.forward(item_seq, length)
            return self.target_loss(states, targets, (item_seq, last), negatives)

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of each row's one candidate, (batch,)."""
        item = interaction[self.ITEM_ID]
        self._check_ids(self.ITEM_ID, item)
        states, *where = self.last_states(interaction)
        offsets = self.score_offsets(*where)
        scores = (states * self.item_table[item]).sum(-1)
        return scores if offsets is None else scores + offsets.of(item[:, None]).squeeze(1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items for each row, (batch, n_items)."""
        states, *where = self.last_states(interaction)
        offsets = self.score_offsets(*where)
        scores = states @ self.item_table.T
        return scores if offsets is None else offsets.added_to(scores)

    def last_states(self, interaction: Interaction) -> tuple[Tensor, Tensor, Tensor]:
        """The state at the last item of each row, (batch, width), the histories, (batch, length),
        and b * length + t of those items, (batch,)."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        self._check_ids(self.ITEM_SEQ, item_seq)
        if int(length.min()) < 1 or int(length.max()) > item_seq.shape[1]:
            raise DatasetError(
                f"{self.ITEM_SEQ_LEN}: every sequence needs 1 to {item_seq.shape[1]} items, got "
                f"lengths from {int(length.min())} to {int(length.max())}"
            )
        last = last_positions(length, item_seq.shape[1])
        return self.encode(item_seq, keep=last), item_seq, last

    def score_offsets(self, item_seq: Tensor, last: Tensor) -> ScoreOffsets | None:
        """What is added to the scores after some positions, one row each; None for nothing.

        Args:
            item_seq: item ids, 0 is padding, (batch, length).
            last: b * length + t of the last item before each target, (rows,).
        """
        parts = [part for part in (self.repeat_bias, self.item_memory) if part is not None]
        if not parts:
            return None
        offsets = parts[0](item_seq, last)
        for part in parts[1:]:
            offsets = offsets.and_also(part(item_seq, last), self.n_items)
        return offsets

    def offsets_after_each(
        self, histories: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """:meth:`score_offsets` after histories, without torch; None for nothing.

        Args:
            histories: item ids, oldest first, (n,) int64 each, without padding, none empty.

        Returns:
            ``(items, amounts)`` of each: distinct items, int64, ascending, and what is added to
            their scores, float32.
        """
        parts = [part for part in (self.repeat_bias, self.item_memory) if part is not None]
        if not parts:
            return None
        if len(parts) == 1:
            return parts[0].after_each(histories)
        return list(map(_summed, *(part.after_each(histories) for part in parts)))

    def _check_ids(self, field: str, ids: Tensor) -> None:
        """Refuse ids outside the item table: on a GPU they would end the process."""
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.n_items:
            raise DatasetError(
                f"{field}: item ids must be in 0 .. {self.n_items - 1}, got "
                f"{low if low < 0 else high}; were they mapped with another dataset's vocabulary?"
            )


class StateSpaceRecommender(CausalRecommender):
    """A :class:`CausalRecommender` with a state that goes on: what the items so far have left."""

    @abstractmethod
    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """What :meth:`encode` carries, before the first item: a tuple of tensors, batch first."""

    @abstractmethod
    def encode(  # type: ignore[override]
        self,
        item_seq: Tensor,
        state: tuple[Tensor, ...] | None = None,
        keep: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """Map item ids, (batch, length), to one state per position, (batch, length, width).

        The state at position t depends on the items up to t only. Given ``state``, what the items
        before ``item_seq`` left, it returns the pair (states, what is left now); the latter is
        meaningful for rows without padding. Given ``keep``, the states are those of the positions
        b * length + t in it, (positions, width).
        """


def similar_lengths(length: Tensor) -> list[Tensor]:
    """Groups of rows, each with the rows of up to 4 items, 5 to 8, 9 to 16, and so on; on a GPU,
    where launching a group's kernels takes longer than padded positions do, up to 64, 256, 1024.

    Args:
        length: items of each row, (batch,) int64.

    Returns:
        A tensor of row numbers per group that has rows; every row is in one group.
    """
    exponent = torch.frexp((length - 1).double()).exponent.clamp_min(2)
    if length.is_cuda:
        exponent = exponent.clamp_min(6).add(1).div(2, rounding_mode="floor")
    return [(exponent == value).nonzero().squeeze(1) for value in exponent.unique()]


def _summed(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Both together: of an item that both have, the sum."""
    items, where = np.unique(np.concatenate([a[0], b[0]]), return_inverse=True)
    amounts = np.bincount(where, np.concatenate([a[1], b[1]]), minlength=len(items))
    return items, amounts.astype(np.float32)


def last_positions(length: Tensor, width: int) -> Tensor:
    """b * width + t of the last item of each row b, (batch,); rows are padded to ``width``."""
    return torch.arange(len(length), device=length.device) * width + length - 1
