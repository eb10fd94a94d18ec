"""``item_memory``: a linear map from the items of a history to the next, beside any causal model;
``item_memory_*``, how it is fitted and how much it counts."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recbole_hydra.data.item_map import SOLVERS, fit_item_map, training_histories
from recbole_hydra.data.splits import parts_left_out
from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import ItemMemory
from recbole_hydra.layers.repeat_bias import SCALE
from recbole_hydra.model.sequential_recommender import LinearMap
from recbole_hydra.model.sequential_recommender.base import CausalRecommender
from recbole_hydra.settings.known_keys import FOR_CAUSAL_MODELS
from recbole_hydra.settings.options.training_mode import is_known_as_causal
from recbole_hydra.settings.rules import choice, integer, number, optional

if TYPE_CHECKING:
    from recbole.data.dataset import SequentialDataset

    from recbole_hydra.data.targets import TargetDataset
    from recbole_hydra.settings.config import Config

logger = logging.getLogger(__name__)

RULES = {
    "item_memory": choice(("none", "linear")),
    "item_memory_decay": number(above=0, below=1),
    "item_memory_ridge": number(1e-6, 1e9, words="a number from 1e-6 to 1e9"),
    "item_memory_entries": integer(least=1),
    "item_memory_solver": choice(SOLVERS),
    "item_memory_weight": optional(number(0, 1e6, words="a number from 0 to 1e6")),
    "item_memory_scale": optional(number(1e-6, 1e6, words="a number from 1e-6 to 1e6")),
}

#: What weight and scale are chosen from on validation, each from the strongest on.
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
SCALES = (0.01, 0.03, 0.1)

#: Of what is no worse than the best by this share the strongest is chosen: the epoch is chosen on
#: the same data, where the model alone therefore looks better than it is, and the memory does not.
NO_WORSE = 0.005

#: By NDCG at PLACES of about so many targets.
PLACES, MOST_TARGETS = 10, 5_000

#: And what LinearMap, which learns nothing, adds to the scores of items in the history.
BIASES = (0.0, -0.5, -1.0, -2.0, -4.0, -8.0, 0.5, 1.0, 2.0, 4.0)


def fit(config: Config) -> None:
    """Leave the memory out where the model cannot have one, and say so."""
    final = config.final_config_dict
    if issubclass(config.model_class, LinearMap):
        if final["item_memory"] == "none":
            raise ConfigError("item_memory: none leaves nothing of LinearMap; use linear")
        if final["repeat_bias"] not in ("none", "shared"):
            config.notes.append("repeat_bias: shared; LinearMap learns none, one number is chosen")
            final["repeat_bias"] = "shared"
    can = issubclass(config.model_class, CausalRecommender) or is_known_as_causal(config)
    if final["item_memory"] == "none" or can:
        return
    # As of the repeat bias: one line for models of a comparison that cannot have what others have.
    config.notes.append(f"item_memory: none; linear is {FOR_CAUSAL_MODELS}, not for {config.model}")
    final["item_memory"] = "none"


def memory_of(model: CausalRecommender) -> ItemMemory:
    """The memory of a model that has one."""
    assert model.item_memory is not None
    return model.item_memory


def fit_memory(
    model: CausalRecommender, dataset: SequentialDataset | TargetDataset, config: Config
) -> None:
    """Fit the memory of a model to the train split, in place.

    Args:
        model: with an ``item_memory``. dataset: the train split.

    Raises:
        ConfigError: the run is without validation, and weight or scale are to be chosen on it; or
            see :func:`.fit_item_map`.
    """
    keys = "item_memory_weight", "item_memory_scale"
    chosen = [key for key in keys if config[key] is None]
    if chosen and not (config["eval_step"] and parts_left_out(config["eval_args"])[0]):
        raise ConfigError(
            f"{' and '.join(chosen)}: ~ is chosen on validation, and this run has none; set "
            f"{'them' if len(chosen) > 1 else 'it'} to a number, or validate"
        )
    begin = time.perf_counter()
    items, begins = training_histories(dataset)
    found = fit_item_map(
        items, begins, model.n_items, config["item_memory_decay"], config["item_memory_ridge"],
        config["item_memory_entries"], config["item_memory_solver"], config["show_progress"],
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    memory = memory_of(model)
    memory.set_map(found, seconds)
    if not chosen:
        memory.weight.fill_(config["item_memory_weight"])
        memory.scale.fill_(config["item_memory_scale"])
    logger.info(
        "item_memory: %s numbers of %s items; %.1f s", f"{found.nnz:,}", f"{model.n_items - 1:,}",
        seconds,
    )  # fmt: skip


@torch.no_grad()
def choose_weight(model: CausalRecommender, batches: Any, config: Config) -> None:
    """Choose how much the memory of a model counts, in place: by NDCG@10 on about MOST_TARGETS of
    the validation data at most, the sum of that among all items and that of new items with the
    history left out; or as the settings say. Of what is next to the best, the strongest.

    Args:
        model: with an ``item_memory``. batches: RecBole's loader, of any mode of evaluation, or
            :class:`~recbole_hydra.data.domains.DomainLoaders`.
    """
    memory = memory_of(model)
    asked = config["item_memory_weight"], config["item_memory_scale"]
    weights = WEIGHTS if asked[0] is None else (asked[0],)
    scales = SCALES if asked[1] is None else (asked[1],)
    # Strongest first.
    pairs = [(weight, scale) for weight in sorted(weights, reverse=True) for scale in scales]
    biases: Sequence[float | None] = (None,)
    if isinstance(model, LinearMap) and model.repeat_bias is not None:
        biases = BIASES
    quality = torch.zeros(len(biases), len(pairs), dtype=torch.float64)
    mode = model.training
    model.eval()
    # Rows from all batches: those of a loader are in the order of their length.
    every = -(-len(batches._dataset) // MOST_TARGETS)
    for batch in batches if quality.numel() > 1 else ():
        interaction, row, target = _targets(batch, config)
        some = row % every == 0
        row, target = row[some] // every, target[some]
        if len(target) == 0:
            continue
        interaction = interaction[torch.arange(0, len(interaction), every)]
        interaction = interaction.to(memory.values.device)
        for i, bias in enumerate(biases):
            _set_bias(model, bias)
            quality[i] += _gains(model, interaction, row, target, pairs).cpu()
    model.train(mode)
    if quality.numel() > 1 and not quality.any():
        return  # nothing is known of it
    least = quality.max() * (1 - NO_WORSE if len(biases) == 1 else 1)
    best = int((quality >= least).flatten().nonzero()[0])
    weight, scale = pairs[best % len(pairs)]
    _set_bias(model, biases[best // len(pairs)])
    memory.weight.fill_(weight)
    memory.scale.fill_(scale)


def _targets(batch: tuple[Any, ...], config: Config) -> tuple[Any, Tensor, Tensor]:
    """The rows of a batch, the row of each target, and the targets. Of candidates that were drawn,
    and of labelled ones, those that were had are the targets, each with a history of its own."""
    interaction, candidates, row, target = batch
    if candidates is None and row is not None:
        return interaction, row, target
    interaction = interaction[interaction[config["LABEL_FIELD"]] == 1]
    target = interaction[config["ITEM_ID_FIELD"]]
    return interaction, torch.arange(len(target)), target


def _set_bias(model: CausalRecommender, bias: float | None) -> None:
    """Let a bias be what is added to the items of the history; None leaves what is learned."""
    if bias is not None and model.repeat_bias is not None:
        model.repeat_bias.weight.fill_(bias / SCALE)


def _gains(
    model: CausalRecommender,
    interaction: Any,
    row: Tensor,
    target: Tensor,
    pairs: Sequence[tuple[float, float]],
) -> Tensor:
    """The sum of 1 / log2(1 + rank) of targets among the first PLACES, (pairs,), for each weight
    and scale, in both rankings: of all items, and, of targets that are new to the user, with the
    history left out.

    Who is among the first is known to the memory, or among the first of those that are not: so the
    scores of all items are looked at once, and for each pair those few.
    """
    states, item_seq, last = model.last_states(interaction)
    row, target = row.to(states.device), target.to(states.device)
    scores = states @ model.item_table.T
    if model.repeat_bias is not None:
        scores = model.repeat_bias(item_seq, last).added_to(scores)
    scores[:, 0] = -torch.inf
    had = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, item_seq, True)
    user, items, amounts = memory_of(model).recall(item_seq, last)
    known = amounts > 0
    user, items, amounts = user[known], items[known], amounts[known]
    of_target, own = scores[row, target], scores[user, items]
    scores[user, items] = -torch.inf
    # What the memory knows for each target: entries from begin on, (target, entry) pairs.
    begin = torch.searchsorted(user, row)
    count = torch.searchsorted(user, row, right=True) - begin
    which = torch.repeat_interleave(count)
    entry = torch.arange(len(which), device=row.device)
    entry = entry + (begin - (count.cumsum(0) - count))[which]
    is_target, rival = items[entry] == target[which], ~had[user, items][entry]
    m_of_target = amounts.new_zeros(len(row))
    m_of_target[which[is_target]] = amounts[entry[is_target]]
    total = torch.zeros(len(pairs), dtype=torch.float64, device=row.device)
    for seen, counted in (
        (~is_target, torch.ones_like(row, dtype=torch.bool)),
        (~is_target & rival, ~had[row, target]),
    ):
        others = scores.topk(min(PLACES, scores.shape[1])).values[row]  # (targets, PLACES)
        of, e = which[seen], entry[seen]
        for i, (weight, scale) in enumerate(pairs):
            mine = of_target + weight * torch.log1p(m_of_target / scale)
            theirs = own + weight * torch.log1p(amounts / scale)
            above = (others > mine[:, None]).sum(1)
            above = above.index_add(0, of, (theirs[e] > mine[of]).long())
            gain = (counted & (above < PLACES)) / torch.log2(above.double() + 2)
            total[i] += gain.sum()
        scores.scatter_(1, item_seq, -torch.inf)
    return total
