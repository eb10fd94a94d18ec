"""Item vectors out of item texts: the item LLM's states, projected to the width of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from recbole_hydra.errors import CheckpointError

if TYPE_CHECKING:
    from recbole_hydra.layers.item_llm import ItemLLM


class TextItems(nn.Module):
    """Projects the states of an item LLM: ``W ((state - center) / scale)``.

    ``center`` and ``scale`` are the mean and standard deviation of each feature over the items
    before any training. They change nothing in what a linear map with a bias can say, and spare it
    from first finding the few directions in which language models' states differ.

    What a checkpoint holds of it is the projection, center and scale, ``[ITEM]``, what training
    changes in the LLM (LoRA), and the LLM's name and hash; neither the LLM nor the states of items.

    Args:
        states: (items, llm width), of the LLM as others trained it; row 0, padding, is not used.
            With an ``llm``, None will do where a checkpoint is loaded next.
        llm: :class:`~.item_llm.ItemLLM` to be trained, its items tokenised; None if it is frozen.
        identity: ``{"name": ..., "hash": ...}`` of the LLM.
        width: of the item vectors.
        std: standard deviation of the item vectors' entries at the start.
    """

    center: Tensor
    scale: Tensor
    states: Tensor | None

    def __init__(
        self,
        states: Tensor | None,
        llm: ItemLLM | None,
        identity: Mapping[str, str],
        width: int,
        std: float,
    ) -> None:
        super().__init__()
        self.llm, self.identity = llm, identity
        llm_width = cast("ItemLLM", llm).width if states is None else states.shape[1]
        center, scale = torch.zeros(llm_width), torch.ones(llm_width)
        if states is not None:
            center = states[1:].mean(0)
            scale = states[1:].std(0, correction=0).clamp_min(1e-6)
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        self.register_buffer("states", states, persistent=False)
        self.projection = nn.Linear(llm_width, width, bias=False)
        nn.init.normal_(self.projection.weight, std=std * llm_width**-0.5)
        self._keeps_states = llm is None
        self._not_saved: set[str] = set()
        if llm is not None:
            self._not_saved = {f"llm.{n}" for n, p in llm.named_parameters() if not p.requires_grad}
            self._not_saved |= {f"llm.{name}" for name, _ in llm.named_buffers()}
            self.register_state_dict_post_hook(_leave_out)
            self.register_load_state_dict_post_hook(_let_be_missing)

    @property
    def is_trained(self) -> bool:
        """Whether the LLM is trained, so that its states change."""
        return not self._keeps_states

    def keep_states(self) -> None:
        """From now on compute the states once: the LLM, trained before, is trained no more."""
        self._keeps_states = True
        self.states = None

    @torch.no_grad()
    def add_states(self, states: Tensor, place: int) -> None:
        """Insert the states of new items, (new, llm width), before the item id ``place``."""
        assert self.states is not None
        states = states.to(self.states.device)
        self.states = torch.cat([self.states[:place], states, self.states[place:]])

    def add_texts(self, texts: Sequence[str], place: int) -> None:
        """Insert the texts of new items before the item id ``place``, for an ``llm``."""
        assert self.llm is not None
        behind, self.llm.tokens = self.llm.tokens[place:], self.llm.tokens[:place]
        self.llm.tokenise(texts)
        self.llm.tokens += behind
        self.states = None

    def forget_states(self) -> None:
        """Drop the states of a trained LLM, which the next call computes anew."""
        if self.is_trained:
            self.states = None

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of items, (items, width); a trained LLM encodes them.

        Args:
            ids: distinct item ids, (items,).
        """
        if self.is_trained:
            return self._project(cast("ItemLLM", self.llm)(ids))
        return self._project(self._all_states().index_select(0, ids))

    def catalogue(self, show_progress: bool = False) -> Tensor:
        """Vectors of all items, (n_items, width); row 0, padding, means nothing."""
        return self._project(self._all_states(show_progress))

    def _project(self, states: Tensor) -> Tensor:
        return self.projection((states - self.center) / self.scale)

    @torch.no_grad()
    def _all_states(self, show_progress: bool = False) -> Tensor:
        """The states of all items, (n_items, llm width), computed where there are none."""
        if self.states is None:
            assert self.llm is not None
            training = self.llm.training
            ids = torch.arange(1, len(self.llm.tokens), device=self.center.device)
            states = self.llm.eval()(ids, show_progress)
            self.llm.train(training)
            self.states = torch.cat([states.new_zeros(1, states.shape[1]), states])
        return self.states

    def get_extra_state(self) -> dict[str, str]:
        """The LLM's name and hash, for a checkpoint."""
        return dict(self.identity)

    def set_extra_state(self, state: Mapping[str, str]) -> None:
        """Check the LLM's hash against a checkpoint's.

        Raises:
            CheckpointError: it is another model.
        """
        if state["hash"] != self.identity["hash"]:
            raise CheckpointError(
                f"item_llm: {self.identity['name']} is not the model that the checkpoint was "
                f"trained with ({state['name']}, hash {state['hash']}); set item_llm to that one"
            )


def _leave_out(
    module: TextItems, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Leave out of a state_dict what training does not change."""
    for name in module._not_saved:
        state_dict.pop(prefix + name, None)


def _let_be_missing(module: TextItems, incompatible_keys: Any) -> None:
    """Let a state_dict lack what :func:`_leave_out` leaves out."""
    module.states = None  # they were those of the LLM as it was before
    missing = incompatible_keys.missing_keys
    missing[:] = [
        key for key in missing if key[max(0, key.find("llm.")) :] not in module._not_saved
    ]
