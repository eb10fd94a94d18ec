"""What the items of a model are: one interface, whether by id, by what their texts say, or by both.

A model asks for the vectors of the ids that it reads, for the table that its states are compared
with, and, around the loss of a batch, for what that batch needs; it never asks what an item is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_hydra.checks import one_of
from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import ItemLLM, TextItems, find_llm, frozen_states, hash_llm

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset

#: Values of ``item_encoder``.
ENCODERS = ("id", "text", "id+text")


class Items:
    """The item side of a model. It has no parameters: those of the modules that it is given are
    registered with the model, under the names that checkpoints know.

    Args:
        n_items: size of the catalogue, the padding item 0 included.
        embedding: the vectors by id, or None.
        output: the vectors by id that states are compared with, where they are others.
        show_progress: a bar while the whole catalogue goes through a language model.

    Attributes:
        text: :class:`~recbole_hydra.layers.TextItems`, the vectors of texts; None without.
    """

    def __init__(
        self,
        n_items: int,
        embedding: nn.Embedding | None,
        output: nn.Embedding | None = None,
        show_progress: bool = False,
    ) -> None:
        self.n_items, self.embedding, self.output = n_items, embedding, output
        self.text: TextItems | None = None
        self.show_progress = show_progress
        self.training = True
        self._prepared: Tensor | None = None  # within prepared()
        self._frozen: Tensor | None = None  # while evaluating

    def describe(self, text: TextItems) -> None:
        """Let an item be what its text says, and, where there are vectors by id, the sum of both,
        which start at zero."""
        self.text = text
        if self.embedding is not None:
            nn.init.zeros_(self.embedding.weight)

    # -- what a model asks for -----------------------------------------------------------------

    def vectors(self, ids: Tensor) -> Tensor:
        """The vectors of item ids, (..., width), zero for the padding."""
        if self.text is None:
            return cast(nn.Embedding, self.embedding)(ids)
        return F.embedding(ids, self.table, padding_idx=0)

    @property
    def table(self) -> Tensor:
        """The vectors that states are compared with, (n_items, width); row 0 is padding.

        Those of texts are computed once per training step, see :meth:`prepared`, and once per
        evaluation.
        """
        if self.text is None:
            return cast(nn.Embedding, self.output or self.embedding).weight
        if self._prepared is not None:
            return self._prepared
        if self.training or torch.is_grad_enabled():
            return self._computed()
        if self._frozen is None:
            self._frozen = self._computed(show_progress=self.show_progress)
        return self._frozen

    @property
    def are_computed(self) -> bool:
        """Whether vectors take computing, so that a step should do it once."""
        return self.text is not None

    @contextmanager
    def prepared(self, ids: Tensor | None = None) -> Iterator[None]:
        """The context of a step: the vectors of ``ids``, distinct and above 0, are computed, once;
        without ``ids`` those of all items."""
        self._prepared = self._computed(ids) if self.are_computed else None
        try:
            yield
        finally:
            self._prepared = None

    def _computed(self, ids: Tensor | None = None, show_progress: bool = False) -> Tensor:
        """The item table, (n_items, width), zero in rows other than ``ids``, by default all but the
        padding's."""
        assert self.text is not None
        if ids is None:
            ids = torch.arange(1, self.n_items, device=self.text.center.device)
            vectors = self.text.catalogue(show_progress)[1:]
        else:
            vectors = self.text(ids)
        if self.embedding is not None:
            vectors = vectors + self.embedding(ids)
        return vectors.new_zeros(self.n_items, vectors.shape[1]).index_copy(0, ids, vectors)

    # -- what happens to a model ---------------------------------------------------------------

    def forget(self) -> None:
        """Compute anew what was computed for an evaluation: weights, device or dtype changed."""
        self._frozen = None

    def set_mode(self, training: bool) -> None:
        """Follow the model's ``train(mode)``."""
        self.training = training
        self.forget()
        if self.text is not None and self.text.llm is not None:
            # What is not trained draws no dropout either.
            self.text.llm.train(training and self.text.is_trained)
            if not training:
                self.text.forget_states()

    @torch.no_grad()
    def add(self, texts: Sequence[str], place: int, config: Config) -> None:
        """Insert rows for new items before the item id ``place``; by id they start at zero.

        Args:
            texts: one per item. config: names the language model and its cache.
        """
        text = cast(TextItems, self.text)
        if text.llm is None:
            folder = find_llm(config["item_llm"])
            states = frozen_states(
                folder, texts, config["item_text_length"], config["device"],
                config["item_llm_cache"],
            )  # fmt: skip
            text.add_states(states, place)
        else:
            text.add_texts(texts, place)
        if self.embedding is not None:
            rows = with_zero_rows(self.embedding.weight, place, len(texts))
            self.embedding.weight = nn.Parameter(rows)
            self.embedding.num_embeddings = len(rows)
        self.n_items += len(texts)
        self.forget()


def with_zero_rows(table: Tensor, place: int, number: int) -> Tensor:
    """``table``, one row per item, with ``number`` rows of zeros before the row ``place``."""
    zeros = table.new_zeros(number, *table.shape[1:])
    return torch.cat([table[:place], zeros, table[place:]])


def text_items(
    setting: Callable[[str], Any],
    config: Config,
    dataset: Dataset,
    width: int,
    std: float,
    loss_type: str,
) -> TextItems:
    """The module that makes vectors of the items' texts.

    Args:
        setting: takes the key of a setting that a text model needs, returns its value.
        config: of the run: ``device``, ``show_progress``.
        dataset: has ``item_text``, (n_items,), and, of several domains, ``domains``.
        width: of the vectors. std: standard deviation of their entries at the start.
        loss_type: of the model.

    Raises:
        ConfigError: a setting that is out of range, a loss that would send the whole catalogue
            through a language model that is trained, or a dataset without texts.
    """
    if not hasattr(dataset, "item_text"):
        raise ConfigError(
            "item_encoder: the dataset has no texts; make it with create_dataset of "
            "recbole_hydra.data, or with run_recbole_hydra"
        )
    name, length = setting("item_llm"), setting("item_text_length")
    training = one_of("llm_training", setting("llm_training"), ("frozen", "lora", "full"))
    kept = setting("adapt_from") and "lora" not in (setting("adapt") or [])
    if training != "frozen" and not kept and loss_type == "CE":
        raise ConfigError(
            f"loss_type: CE ranks all items, so that with llm_training {training} every step "
            "would send the whole catalogue through the LLM; use SampledCE or gBCE"
        )
    folder, device, progress = find_llm(name), config["device"], bool(config["show_progress"])
    identity = {"name": str(name), "hash": hash_llm(folder)}
    states = llm = None
    if training == "frozen" or not getattr(dataset, "is_from_checkpoint", False):
        cache = setting("item_llm_cache")
        domains = getattr(dataset, "domains", None)
        ranges = [(1, len(dataset.item_text))] if domains is None else domains.ranges()
        parts = [
            frozen_states(folder, dataset.item_text[a:b], length, device, cache, progress)
            for a, b in ranges  # by domain, so that a file of the cache serves it alone, too
        ]
        states = torch.cat([parts[0].new_zeros(1, parts[0].shape[1]), *parts])
    if training != "frozen":
        lora = {
            key: setting(f"lora_{key}") for key in ("rank", "alpha", "dropout", "target_modules")
        }
        checkpointing = setting("llm_gradient_checkpointing")
        llm = ItemLLM(folder, length, training, lora, checkpointing, device)
        llm.tokenise(dataset.item_text, progress)
    return TextItems(states, llm, identity, width, std)
