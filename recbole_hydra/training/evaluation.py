"""Evaluation of several domains, each among its own items."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recbole_hydra.data.domains import DomainLoaders, Domains
from recbole_hydra.metrics import candidates_between

if TYPE_CHECKING:
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
    from recbole.data.interaction import Interaction
    from recbole.trainer import Trainer
else:
    Trainer = object


class DomainEvaluation(Trainer):
    """RecBole's evaluation, of each domain where there are several. To be mixed in before a trainer
    of RecBole's.

    Attributes:
        domains: those of the data that is evaluated; None without.
    """

    domains: Domains | None = None

    def evaluate(
        self,
        eval_data: AbstractDataLoader | DomainLoaders | None,
        load_best_model: bool = True,
        model_file: str | os.PathLike[str] | None = None,
        show_progress: bool = False,
    ) -> OrderedDict[str, float] | None:
        """RecBole's ``evaluate``; with several domains, of each, and their means.

        Returns:
            The metrics; with domains the means over domains under their names, and those of a
            domain under ``"ndcg@10 amazon-office"``.
        """
        if not isinstance(eval_data, DomainLoaders):
            self.domains = None
            return super().evaluate(eval_data, load_best_model, model_file, show_progress)
        self.domains, results = eval_data.domains, {}
        ranges = dict(zip(self.domains.names, self.domains.ranges(), strict=True))
        for name, loader in eval_data.by_name.items():
            with candidates_between(self.eval_collector, *ranges[name]):
                results[name] = super().evaluate(loader, load_best_model, model_file, show_progress)
            load_best_model = False
        places = self.config["metric_decimal_place"]
        first = next(iter(results.values()))
        mean = {
            key: round(sum(result[key] for result in results.values()) / len(results), places)
            for key in first
        }
        own = {f"{k} {name}": v for name, result in results.items() for k, v in result.items()}
        return OrderedDict({**mean, **own})

    def _full_sort_batch_eval(
        self, batched_data: tuple[Interaction, Tensor | None, Tensor, Tensor]
    ) -> tuple[Interaction, Tensor, Tensor, Tensor]:
        """RecBole's; with several domains, only items of the target's domain have a score."""
        interaction, scores, rows, targets = super()._full_sort_batch_eval(batched_data)
        if (domains := self.domains) is not None:
            domain = domains.of(targets)
            for index in domain.unique().tolist():
                start, stop = domains.ranges()[index]
                mine = rows[domain == index]
                scores[mine, :start] = -torch.inf
                scores[mine, stop:] = -torch.inf
        return interaction, scores, rows, targets
