"""Causal models of RecBole's form, with the losses and the scores of :class:`.CausalRecommender`.

What is not the architecture is for every causal model: SASRec, GRU4Rec and users' own compute the
states, and what is done with states is ours, the repeat bias and the sampled losses included. The
class for it is made of the model's own and :class:`GatheredRecommender`; it has the model's name,
its parameters under their names, and what is learned on top of them. Where no setting asks for
that, the class is the model's own.
"""

from __future__ import annotations

import copy
import copyreg
from abc import ABCMeta
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from recbole_hydra.errors import ConfigError
from recbole_hydra.model.items import Items
from recbole_hydra.model.sequential_recommender.base import CausalRecommender

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset


def every_state(
    model: SequentialRecommender, forward: Callable[..., Tensor], item_seq: Tensor
) -> Tensor:
    """States at all positions, (batch, length, width), of a model whose ``forward(item_seq,
    item_seq_len)`` computes them and ends in ``gather_indexes``.

    Args:
        model: that model. forward: its method.
        item_seq: item ids padded on the right with 0, (batch, length).
    """
    model.gather_indexes = lambda output, index: output
    try:
        return forward(item_seq, (item_seq > 0).sum(1))
    finally:
        del model.gather_indexes


class _Made(ABCMeta):
    """The kind of the classes that :func:`recommender_of` makes: no module has them by name, so
    that pickle makes them anew."""


class GatheredRecommender(CausalRecommender):
    """A :class:`.CausalRecommender` whose states are those of a class of RecBole's form, which
    :func:`recommender_of` puts below it.

    Attributes:
        plain: that class.
    """

    plain: type[SequentialRecommender]

    def __init__(self, config: Config, dataset: Dataset) -> None:
        # What is learned on top comes last: the parameters below start as they do without it.
        self.plain.__init__(self, _config_of_recboles(config), dataset)
        if getattr(self, "item_embedding", None) is None:
            raise ConfigError(
                f"repeat_bias, item_memory, loss_type: {self.plain.__name__} has no item_embedding "
                "to compare its states with; leave repeat_bias, item_memory, history_as_one, "
                "SampledCE and gBCE out"
            )
        self.items = Items(self.n_items, self.item_embedding)
        self._config = config
        self.prepare_losses(dataset)
        self.prepare_item_memory(config)
        self.prepare_repeat_bias(self.setting("repeat_bias") or "none")
        del self._config

    def states(self, item_seq: Tensor) -> Tensor:
        """See the base class; those of the class below."""
        return every_state(self, lambda *rows: self.plain.forward(self, *rows), item_seq)

    def _forget_items(self) -> None:
        if self.items is not None:  # a model may move itself while it is built
            super()._forget_items()


def _config_of_recboles(config: Config) -> Config:
    """``config`` for a class that takes no loss but its own: whichever it is, ours is computed."""
    if config["loss_type"] in ("CE", "BPR"):
        return config
    plain = copy.copy(config)
    plain.final_config_dict = {**config.final_config_dict, "loss_type": "CE"}
    return plain


@cache
def recommender_of(model_class: type[SequentialRecommender]) -> type[GatheredRecommender]:
    """The class whose states are those of ``model_class``, and whose losses and scores are those of
    :class:`.CausalRecommender`; it has the name of ``model_class``."""
    attributes: dict[str, Any] = {
        "plain": model_class,
        "__doc__": model_class.__doc__,
        "__module__": __name__,
        "__qualname__": model_class.__qualname__,
    }
    bases = (GatheredRecommender, model_class)
    return cast(type[GatheredRecommender], _Made(model_class.__name__, bases, attributes))


def _as_pickled(made: Any) -> tuple[Any, ...]:
    return recommender_of, (made.plain,)


copyreg.pickle(_Made, _as_pickled)


def without_our_losses(model_class: type) -> type:
    """What :func:`recommender_of` was given; any other class as it is."""
    return model_class.plain if issubclass(model_class, GatheredRecommender) else model_class
