"""RecBole's Trainer pickles its Config into the checkpoint; since 2.6, torch.load refuses that.

The methods below write and read plain data instead. Delete when RecBole saves plain data.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
    from recbole.trainer import PretrainTrainer, Trainer


def mend_trainers(module: ModuleType) -> None:
    """Let RecBole's trainers write and read plain data; ``module`` is recbole.trainer.trainer."""
    Trainer, PretrainTrainer = module.Trainer, module.PretrainTrainer
    Trainer.fit = _remember_dataset(Trainer.fit)
    Trainer._save_checkpoint = save_plain_checkpoint
    Trainer.resume_checkpoint = resume_plain_checkpoint
    Trainer.evaluate = _load_best_model_plainly(Trainer.evaluate)
    PretrainTrainer.save_pretrained_model = save_plain_pretrained_model


def _remember_dataset(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Let the trainer know the dataset, whose vocabulary belongs in its checkpoints."""

    @functools.wraps(fit)
    def fit_and_remember(
        self: Trainer, train_data: AbstractDataLoader, *args: Any, **kwargs: Any
    ) -> Any:
        self.train_dataset = train_data._dataset
        return fit(self, train_data, *args, **kwargs)

    return fit_and_remember


def save_plain_checkpoint(self: Trainer, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
    """RecBole's ``Trainer._save_checkpoint``, writing plain data."""
    from recbole_hydra.checkpoint import model_state, save_checkpoint, vocabulary

    if not self.config["single_spec"] and self.config["local_rank"] != 0:
        return
    path = kwargs.pop("saved_model_file", self.saved_model_file)
    dataset = getattr(self, "train_dataset", None)
    state = model_state(self.config, self.model, epoch)
    state["vocabulary"] = {} if dataset is None else vocabulary(dataset)
    state["cur_step"] = self.cur_step
    state["best_valid_score"] = self.best_valid_score
    state["optimizer"] = self.optimizer.state_dict()
    save_checkpoint(path, state)
    if verbose:
        self.logger.info(f"Saving current: {path}")


def resume_plain_checkpoint(self: Trainer, resume_file: str | os.PathLike[str]) -> None:
    """RecBole's ``Trainer.resume_checkpoint``, reading plain data.

    As RecBole's, it restores weights, optimizer and counters, not the random generators;
    ``run_recbole_hydra(resume=...)`` restores everything.
    """
    from recbole_hydra.checkpoint import load_checkpoint, restore_model
    from recbole_hydra.errors import CheckpointError

    state = load_checkpoint(resume_file, self.device)
    if "optimizer" not in state:
        raise CheckpointError(
            f"{resume_file}: not written by RecBole's Trainer; continue it with --resume"
        )
    self.saved_model_file = str(resume_file)
    self.start_epoch = state["epoch"] + 1
    self.cur_step = state["cur_step"]
    self.best_valid_score = state["best_valid_score"]
    restore_model(self.model, state, resume_file)
    self.optimizer.load_state_dict(state["optimizer"])
    self.logger.info(f"Checkpoint loaded. Resume training from epoch {self.start_epoch}")


def _load_best_model_plainly(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """RecBole's ``Trainer.evaluate``, reading the best model from plain data."""

    @functools.wraps(evaluate)
    def evaluate_plainly(
        self: Trainer,
        eval_data: AbstractDataLoader | None,
        load_best_model: bool = True,
        model_file: str | os.PathLike[str] | None = None,
        show_progress: bool = False,
    ) -> Any:
        from recbole_hydra.checkpoint import load_checkpoint, restore_model

        if load_best_model and eval_data:
            path = model_file or self.saved_model_file
            restore_model(self.model, load_checkpoint(path, self.device), path)
            self.logger.info(f"Loading model structure and parameters from {path}")
        return evaluate(self, eval_data, load_best_model=False, show_progress=show_progress)

    return evaluate_plainly


def save_plain_pretrained_model(
    self: PretrainTrainer, epoch: int, saved_model_file: str | os.PathLike[str]
) -> None:
    """RecBole's ``PretrainTrainer.save_pretrained_model``, writing plain data.

    The models that read it (S3Rec, RaCT) call ``torch.load``, which takes plain data.
    """
    from recbole_hydra.checkpoint import model_state, save_checkpoint

    save_checkpoint(saved_model_file, model_state(self.config, self.model, epoch))
    self.saved_model_file = saved_model_file
