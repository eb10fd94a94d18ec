"""The models that can be trained on every position of a sequence, and what they offer for it.

State t of a causal model depends on the items up to t only, so that one pass over a history gives
the states before all of its items. Such a model offers :class:`CausalModel`: ours do, and so do
users' subclasses of :class:`.CausalRecommender`. For others an adapter does; that of RecBole's form
is :class:`GatheredStates`. :func:`causal` registers a class, and :func:`check_causal` finds out
whether it is what it is registered as.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.sequential_recommender import FDSA, GRU4Rec, GRU4RecF, SASRec, SASRecF
from torch import Tensor

from recbole_hydra.errors import ConfigError
from recbole_hydra.model.gathered import GatheredRecommender, every_state, recommender_of
from recbole_hydra.model.sequential_recommender.base import (
    CausalRecommender,
    StateSpaceRecommender,
)
from recbole_hydra.ops import linear_cross_entropy

_Model = TypeVar("_Model", bound=type)


class CausalModel(Protocol):
    """What training on every position asks of a model.

    Attributes:
        item_table: the vectors that states are compared with, (n_items, width).
    """

    if TYPE_CHECKING:  # it need not be settable

        @property
        def item_table(self) -> Tensor: ...

    def encode(self, item_seq: Tensor, keep: Tensor) -> Tensor:
        """States at the positions ``keep`` of ``item_seq``, (positions, width); each depends on the
        items up to its position only.

        Args:
            item_seq: item ids padded on the right with 0, (batch, length).
            keep: b * length + t of every position wanted, (positions,).
        """

    def target_loss(
        self,
        states: Tensor,
        targets: Tensor,
        history: tuple[Tensor, Tensor],
        negatives: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of states against the items that came next, as ``calculate_loss`` has it.

        Args:
            states: (targets, width). targets: item ids, (targets,).
            history: item ids, (batch, length), and b * length + t of the last item before each
                target, (targets,).
            negatives: for BPR, item ids, (targets, negatives).
        """

    def step(
        self, item_seq: Tensor, targets: Tensor, negatives: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """The context of :meth:`encode` and :meth:`target_loss` for one batch."""

    def told_apart(self, targets: Tensor, items: Tensor) -> Tensor | None:
        """Which of ``items`` the loss tells each target apart from, (targets, k) bool; None for
        all.

        Args:
            targets: item ids, (targets,). items: item ids, (targets, k).
        """


class GatheredStates:
    """A :class:`CausalModel` out of a model of RecBole's form: ``forward(item_seq, item_seq_len)``
    computes all states and ends in ``gather_indexes``, scores are inner products with
    ``item_embedding``, the loss is CE or BPR of them.

    Args:
        model: that model.
    """

    def __init__(self, model: SequentialRecommender) -> None:
        self.model = model

    @property
    def item_table(self) -> Tensor:
        return self.model.item_embedding.weight

    def encode(self, item_seq: Tensor, keep: Tensor) -> Tensor:
        states = every_state(self.model, self.model.forward, item_seq)
        return states.flatten(0, 1).index_select(0, keep)

    def target_loss(
        self,
        states: Tensor,
        targets: Tensor,
        history: tuple[Tensor, Tensor],
        negatives: Tensor | None = None,
    ) -> Tensor:
        table = self.item_table
        if negatives is None:
            return linear_cross_entropy(states, table, targets)
        positive = (states * table[targets]).sum(-1, keepdim=True)
        negative = (states.unsqueeze(1) * table[negatives]).sum(-1)
        return self.model.loss_fct(positive.expand_as(negative), negative)

    def step(
        self, item_seq: Tensor, targets: Tensor, negatives: Tensor | None = None
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def told_apart(self, targets: Tensor, items: Tensor) -> None:
        return None

    @staticmethod
    def lacks(model_class: type[SequentialRecommender]) -> str | None:
        """What a class lacks that this adapter needs, in words; None for nothing."""
        takes = list(inspect.signature(model_class.forward).parameters)[1:]
        if len(takes) != 2:
            return f"forward(item_seq, item_seq_len); it has forward({', '.join(takes)})"
        return None


#: RecBole's models that are causal, and of the form of :class:`GatheredStates`. What the others are
#: instead is in docs/causal.md.
_RECBOLES = (SASRec, GRU4Rec, SASRecF, GRU4RecF, FDSA)

#: The adapters of classes that do not offer the protocol themselves.
_ADAPTERS: dict[type, Callable[[Any], CausalModel] | None] = dict.fromkeys(
    _RECBOLES, GatheredStates
)

#: The models that are known to be causal, in words.
KNOWN = "Hydra, Mamba4Rec, SASRec, GRU4Rec, SASRecF, GRU4RecF and FDSA"


@overload
def causal(
    model_class: _Model, *, adapter: Callable[[Any], CausalModel] | None = ...
) -> _Model: ...
@overload
def causal(
    model_class: None = None, *, adapter: Callable[[Any], CausalModel] | None = ...
) -> Callable[[_Model], _Model]: ...
def causal(
    model_class: type | None = None,
    *,
    adapter: Callable[[Any], CausalModel] | None = GatheredStates,
) -> Any:
    """Register a model class as causal, so that ``training_mode: auto`` trains it on every
    position; a decorator::

        @recbole_hydra.causal
        class MySASRec(SASRec): ...

    Subclasses of :class:`.CausalRecommender` need no registration. Every run checks, on a random
    batch, that no state depends on a later item.

    Args:
        model_class: the class.
        adapter: takes a model, returns its :class:`CausalModel`; None where the class offers that
            itself.

    Raises:
        ConfigError: the class lacks what the adapter needs.
    """
    if model_class is None:
        return lambda model_class: causal(model_class, adapter=adapter)
    problem = None
    if not isinstance(model_class, type) or not hasattr(model_class, "forward"):
        raise ConfigError(f"causal: takes a model class, got {model_class!r}")
    if adapter is not None and not callable(adapter):
        raise ConfigError(f"causal: adapter must be a class or None, got {adapter!r}")
    if adapter is None:
        names = ("encode", "item_table", "target_loss", "step", "told_apart")
        missing = [name for name in names if not hasattr(model_class, name)]
        problem = ", ".join(missing) or None
    elif hasattr(adapter, "lacks"):
        problem = adapter.lacks(model_class)
    if problem is not None:
        raise ConfigError(f"causal: {model_class.__name__} lacks {problem}")
    _ADAPTERS[model_class] = adapter
    return model_class


def is_causal(model_class: type) -> bool:
    """Whether a model class is known or registered as causal: SASRec, GRU4Rec, ours, subclasses of
    ours that compute their states and their loss as ours do, and those of :func:`causal`."""
    return model_class in _ADAPTERS or (
        issubclass(model_class, CausalRecommender)
        and model_class.forward is CausalRecommender.forward
        and model_class.calculate_loss is CausalRecommender.calculate_loss
    )


def can_carry_state(model_class: type) -> bool:
    """Whether a model class has a state that a window can hand to the next: ours have."""
    return is_causal(model_class) and issubclass(model_class, StateSpaceRecommender)


def causal_model(model: SequentialRecommender) -> CausalModel:
    """What a model that :func:`is_causal` says yes to, or that a setting names, offers."""
    adapter = _ADAPTERS.get(type(model), GatheredStates)
    if isinstance(model, CausalRecommender) or adapter is None:
        return model
    return adapter(model)


def with_our_losses(model_class: type) -> type:
    """The class whose states are those of ``model_class``, with the losses, the repeat bias and the
    scores of :class:`.CausalRecommender`; ``model_class`` itself where it is a subclass of that.

    Args:
        model_class: one that :func:`is_causal` says yes to, or that a setting names.

    Raises:
        ConfigError: it was registered with an adapter of its own, which computes its loss.
    """
    if issubclass(model_class, CausalRecommender):
        return model_class
    adapter = _ADAPTERS.get(model_class, GatheredStates)
    if adapter is not GatheredStates:
        own = "itself" if adapter is None else f"by {getattr(adapter, '__name__', adapter)}"
        raise ConfigError(
            f"{model_class.__name__} is registered as causal with a loss that is computed {own}, "
            "so repeat_bias, history_as_one, SampledCE and gBCE cannot join it; leave them out, "
            "register it without an adapter, or make it a subclass of CausalRecommender"
        )
    plain: Any = model_class
    return recommender_of(plain)


# -- whether it is true --------------------------------------------------------------------------

#: How much a state may differ by rounding, relative to the largest entry of all.
_ROUNDING = 1e-4

#: The most positions of a history that are looked at, and places where it is cut.
_POSITIONS, _CUTS = 200, 16


@torch.no_grad()
def check_causal(model: SequentialRecommender, length: int, seed: int = 0) -> None:
    """Look at the states of a model on random histories, of 200 items at most.

    Args:
        model: on its device. length: the most items of a history.
        seed: of the histories; no other random generator is drawn from.

    Raises:
        ConfigError: a state that depends on a later item, on the padding behind it, or on how long
            the row is; states that the model does not score with by inner products with its item
            table.
    """
    name, offered = type(model).__name__, causal_model(model)
    device = next(model.parameters()).device
    rows, length = 4, max(2, min(length, _POSITIONS))
    draw = torch.Generator().manual_seed(seed)
    items = torch.randint(1, model.n_items, (rows, length), generator=draw)
    mode = model.training
    model.eval()
    try:
        with _said_of(name):
            states = _states(offered, items.to(device))
            for cut in torch.linspace(1, length - 1, min(_CUTS, length - 1)).long().tolist():
                later = torch.randint(1, model.n_items, (rows, length - cut), generator=draw)
                for what, tail in (
                    (f"the item at position {cut} or later", later),
                    (f"the padding at position {cut} or later", torch.zeros_like(later)),
                    ("how long the row is", later[:, :0]),
                ):
                    other = torch.cat([items[:, :cut], tail], dim=1).to(device)
                    change = (_states(offered, other)[:, :cut] - states[:, :cut]).abs()
                    change = change.amax(dim=(0, 2))
                    if float(change.max()) > _ROUNDING * float(states.abs().max()):
                        raise ConfigError(
                            f"training_mode: {name} is registered as causal, but its state at "
                            f"position {int(change.argmax())} depends on {what}; {_remedy(model)}"
                        )
            _check_scores(model, offered, items.to(device), states)
    finally:
        model.train(mode)


def _states(offered: CausalModel, item_seq: Tensor) -> Tensor:
    """The states at all positions, (rows, length, width)."""
    rows, length = item_seq.shape
    states = offered.encode(item_seq, keep=torch.arange(rows * length, device=item_seq.device))
    if not isinstance(states, torch.Tensor) or states.shape[:-1] != (rows * length,):
        got = tuple(states.shape) if isinstance(states, torch.Tensor) else type(states).__name__
        raise ValueError(f"those of {rows * length} positions are (positions, width), got {got}")
    return states.reshape(rows, length, -1)


def _check_scores(
    model: SequentialRecommender, offered: CausalModel, items: Tensor, states: Tensor
) -> None:
    """Compare the model's own scores at the last positions with inner products."""
    rows, length = items.shape
    if isinstance(model, GatheredRecommender):
        own_scores = partial(model.plain.full_sort_predict, model)  # what it has below ours
    elif any(getattr(model, part, None) is not None for part in ("repeat_bias", "item_memory")):
        return  # ours, whose scores have it on top
    else:
        own_scores = model.full_sort_predict
    batch = {
        model.ITEM_SEQ: items,
        model.ITEM_SEQ_LEN: torch.full((rows,), length, device=items.device),
        model.USER_ID: torch.ones(rows, dtype=torch.long, device=items.device),
    }
    own = own_scores(batch).view(rows, -1)
    ours = states[:, -1] @ offered.item_table.T
    if own.shape != ours.shape or float((own - ours).abs().max()) > _ROUNDING * float(
        ours.abs().max().clamp_min(1e-12)
    ):
        raise ConfigError(
            f"training_mode: {type(model).__name__} is registered as causal, but its scores are "
            f"not the inner products of its states with its item table; {_remedy(model)}, or "
            "register it with an adapter of its own"
        )


def _remedy(model: SequentialRecommender) -> str:
    """How a model that is not causal is trained."""
    alone = isinstance(model, GatheredRecommender)
    without = ", without repeat_bias, SampledCE and gBCE" if alone else ""
    return f"train it with training_mode: augmentation{without}"


@contextmanager
def _said_of(name: str) -> Iterator[None]:
    """What a model that does not fit its adapter raises, in one line."""
    try:
        yield
    except ConfigError:
        raise
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        line = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"training_mode: {name} is registered as causal, but does not offer its states: {line}"
        ) from error


def needs_check(model_class: type, training_mode: str = "autoregressive") -> bool:
    """Whether a run has to find out: not for RecBole's models that are known, nor for ours, nor
    where the run reads the states at the last positions only, and lets the model score."""
    if issubclass(model_class, GatheredRecommender):
        model_class = model_class.plain
    elif training_mode != "autoregressive":
        return False
    package = model_class.__module__.partition(".")[0]
    return not (model_class in _RECBOLES or package == "recbole_hydra")
