"""The models that can be trained on every position of a sequence, and their states there."""

from contextlib import contextmanager, nullcontext

from recbole.model.sequential_recommender import GRU4Rec, SASRec

from recbole_hydra.model.losses import later_targets
from recbole_hydra.model.sequential_recommender.base import StateSpaceRecommender
from recbole_hydra.ops import linear_cross_entropy

#: RecBole's causal models: state t depends on the items up to t only, :meth:`forward` computes all
#: states and ends in ``gather_indexes``, and scores are inner products with ``item_embedding``.
RECBOLE_CAUSAL = (SASRec, GRU4Rec)


def is_causal(model_class: type) -> bool:
    """Whether a model class is in the registry: SASRec, GRU4Rec, ours, and subclasses of ours that
    compute their states and their loss as ours do."""
    return model_class in RECBOLE_CAUSAL or (
        issubclass(model_class, StateSpaceRecommender)
        and model_class.forward is StateSpaceRecommender.forward
        and model_class.calculate_loss is StateSpaceRecommender.calculate_loss
    )


def can_carry_state(model_class: type) -> bool:
    """Whether a model class has a state that a window can hand to the next: ours have."""
    return is_causal(model_class) and model_class not in RECBOLE_CAUSAL


def loss_step(model, item_seq, targets, negatives=None):
    """The context of :func:`states_at` and :func:`target_loss` for one batch; see ``step`` of
    :class:`~recbole_hydra.model.sequential_recommender.base.StateSpaceRecommender`."""
    if isinstance(model, StateSpaceRecommender):
        return model.step(item_seq, targets, negatives)
    return nullcontext()


def states_at(model, item_seq, keep):
    """States of a causal model at the positions ``keep`` of ``item_seq``, (positions, width).

    Args:
        item_seq: (batch, length). keep: b * length + t of every position wanted, (positions,).
    """
    if isinstance(model, StateSpaceRecommender):
        return model.encode(item_seq, keep=keep)
    with _gathering_all(model):
        states = model.forward(item_seq, (item_seq > 0).sum(1))
    return states.flatten(0, 1).index_select(0, keep)


def target_loss(model, states, targets, history, negatives=None):
    """Mean loss of a causal model over targets, as its own ``calculate_loss`` defines it.

    Args:
        states: (targets, width). targets: item ids, (targets,).
        history: what precedes the targets, as :class:`.StateSpaceRecommender`'s takes it.
        negatives: for BPR, item ids, (targets, negatives).
    """
    if isinstance(model, StateSpaceRecommender):
        return model.target_loss(states, targets, history, negatives)
    table = model.item_embedding.weight
    if negatives is None:
        return linear_cross_entropy(states, table, targets)
    positive = (states * table[targets]).sum(-1, keepdim=True)
    negative = (states.unsqueeze(1) * table[negatives]).sum(-1)
    return model.loss_fct(positive.expand_as(negative), negative)


def later_target_loss(model, states, targets, later, weights):
    """What later targets add to the :func:`target_loss` of a causal model trained with CE.

    Args:
        states: (targets, width). targets: item ids, (targets,).
        later, weights: see :func:`recbole_hydra.model.losses.later_targets`.
    """
    if isinstance(model, StateSpaceRecommender):
        return model.later_target_loss(states, targets, later, weights)
    return later_targets(states, model.item_embedding.weight, targets, later, weights)


@contextmanager
def _gathering_all(model):
    """Let ``model.gather_indexes``, the last step of its ``forward``, return every position."""
    model.gather_indexes = lambda output, index: output
    try:
        yield
    finally:
        del model.gather_indexes
