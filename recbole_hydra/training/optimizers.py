"""The optimizers of a run, and their learning rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from recbole_hydra.checks import positive_number
from recbole_hydra.settings.options.learning_rate_decay import rate_left

if TYPE_CHECKING:
    from recbole.trainer import Trainer
else:
    Trainer = object


class Optimizers(Trainer):
    """RecBole's optimizers, with rates by epoch. To be mixed in before a trainer of RecBole's."""

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's optimizer; on every position, with torch's fused update where it has one.

        After the scan and the loss, the update of the item table is what is left to speed up: fused
        it takes a fifth of the time, of a million items a thirtieth. The numbers differ in the last
        digits from those of torch's default.
        """
        optimizer = super()._build_optimizer(**kwargs)
        self._slow_down_llm(optimizer)
        fused = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
        if self.config["training_mode"] != "autoregressive" or type(optimizer) not in fused:
            return optimizer
        groups = [
            {key: value for key, value in group.items() if key not in ("foreach", "fused")}
            for group in optimizer.param_groups
        ]
        return type(optimizer)(groups, fused=True)

    def _slow_down_llm(self, optimizer: torch.optim.Optimizer) -> None:
        """Give what is trained of an item LLM a learning rate of its own, ``llm_learning_rate``."""
        text = getattr(self.model, "item_text", None)
        if text is None or not text.is_trained:
            return
        llm = {id(parameter) for parameter in text.llm.parameters()}
        (group,) = optimizer.param_groups
        ours = [p for p in group["params"] if id(p) in llm and p.requires_grad]
        group["params"] = [p for p in group["params"] if id(p) not in llm]
        if ours:
            options = {key: value for key, value in group.items() if key != "params"}
            positive_number("llm_learning_rate", self.config["llm_learning_rate"])
            optimizer.add_param_group({**options, "params": ours})

    def set_learning_rates(self, epoch: int) -> None:
        """Let the learning rates of an epoch, counted from 0, be what the settings say."""
        left = rate_left(self.config["learning_rate_decay"], epoch)
        for optimizer in self.optimizers().values():
            groups = optimizer.param_groups
            groups[0]["lr"] = left * self.config["learning_rate"]
            for group in groups[1:]:  # what _slow_down_llm adds; RecBole has one group
                group["lr"] = left * self.config["llm_learning_rate"]

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The trainer's optimizers by attribute; RecVAE's trainer has one per half of the model,
        and lets ``optimizer`` point to the one in use."""
        found = {k: v for k, v in vars(self).items() if isinstance(v, torch.optim.Optimizer)}
        if len(found) > 1:
            found.pop("optimizer", None)
        return found
