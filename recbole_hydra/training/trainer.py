"""RecBole's trainers with checkpoints that a killed run continues from exactly."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.utils import ModelType
from recbole.utils import get_trainer as get_recbole_trainer
from torch import Tensor

from recbole_hydra import checkpoint, threads
from recbole_hydra.checks import one_of
from recbole_hydra.data.evaluation import TargetCollector
from recbole_hydra.data.windows import WindowLoader
from recbole_hydra.errors import CheckpointError, ConfigError, TrainingError
from recbole_hydra.settings.options.item_memory import choose_weight
from recbole_hydra.training.evaluation import DomainEvaluation
from recbole_hydra.training.optimizers import Optimizers
from recbole_hydra.training.window_loss import WindowLoss

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_hydra.data.domains import DomainLoaders
    from recbole_hydra.settings.config import Config

BEST, LAST = ".best.pth", ".last.pth"

#: What ``enable_amp`` computes in.
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: Settings that a resumed run cannot change: its scores, its split, or its state would not fit.
FIXED = ("seed", "learner", "valid_metric", "eval_args", "training_mode", "carry_state")

#: And those of what is fitted before training, which older checkpoints do not have.
FIXED_MEMORY = (
    "item_memory", "item_memory_decay", "item_memory_ridge", "item_memory_entries",
    "item_memory_solver",
)  # fmt: skip


@cache
def _resumable(base: type) -> type:
    return type(f"Resumable{base.__name__}", (ResumableTrainer, base), {})


def get_trainer(config: Config) -> type:
    """Return RecBole's trainer class for the model of ``config``, made resumable.

    Decision-tree models train outside torch and keep RecBole's own trainer.
    """
    threads.watch()
    base = get_recbole_trainer(config["MODEL_TYPE"], config["model"])
    return base if config["MODEL_TYPE"] == ModelType.DECISIONTREE else _resumable(base)


@contextmanager
def _autocast_to(device_type: str, dtype: torch.dtype) -> Iterator[None]:
    """Let autocast, which RecBole enters without a dtype, compute in ``dtype``."""
    before = torch.get_autocast_dtype(device_type)
    torch.set_autocast_dtype(device_type, dtype)
    try:
        yield
    finally:
        torch.set_autocast_dtype(device_type, before)


def run_name(config: Config) -> str:
    """A name for the files of a run, unique also among runs started in the same second."""
    started = time.strftime("%Y%m%d-%H%M%S")
    # uuid4 reads the system's randomness: runs with the same seed get different names.
    return f"{config['model']}-{config['dataset']}-{started}-{uuid.uuid4().hex[:8]}"


class ResumableTrainer(Optimizers, DomainEvaluation):
    """A mixin before one of RecBole's trainers: two checkpoints a run, and exact resumption.

    ``<run>.best.pth`` is written at each improvement, ``<run>.last.pth`` after every epoch, its
    evaluation included, with all that the next epoch depends on. The epoch's state is written when
    the next epoch begins, or training ends, because only then RecBole's loop is through with it.

    Attributes:
        history: one dict per epoch run: epoch, train_seconds, train_loss and, where it was
            evaluated, valid_seconds, valid_score, valid_result and seconds, those of all epochs so
            far.
        on_epoch: called with that dict after every evaluation, once the epoch's checkpoints are
            written, if it is not None.
    """

    def __init__(self, config: Config, model: AbstractRecommender) -> None:
        checkpoint.check_writable(config["checkpoint_dir"])
        super().__init__(config, model)
        self.amp_dtype = AMP_DTYPES[one_of("amp_dtype", config["amp_dtype"], AMP_DTYPES)]
        if self.enable_amp and self.amp_dtype == torch.float16:
            self._turn_scaler_on()
        if config["training_mode"] == "autoregressive":
            self.eval_collector = TargetCollector(config)
        self._name_files(Path(self.checkpoint_dir) / run_name(config))
        self._initial_numbers = _numbers(model)
        self.history: list[dict[str, Any]] = []
        self.on_epoch: Callable[[dict[str, Any]], object] | None = None
        self.data_state: dict[str, dict] = {}
        self._saving = False
        self._resumed_state: Mapping[str, Any] | None = None
        self._epoch: int | None = None  # the epoch that is being trained, or was last
        self._batch = 0

    def _name_files(self, run: str | os.PathLike[str]) -> None:
        self.saved_model_file = f"{run}{BEST}"
        self.last_model_file = f"{run}{LAST}"

    def _turn_scaler_on(self) -> None:
        """float16 loses small gradients unless the loss is scaled up."""
        if self.device.type != "cuda":
            raise ConfigError(
                f"amp_dtype: fp16 needs a GPU, whose gradients are scaled, not {self.device}; use "
                "bf16"
            )
        if self.clip_grad_norm:
            raise ConfigError(
                "clip_grad_norm, amp_dtype: with fp16, RecBole would clip gradients that are "
                "scaled up; use bf16, or remove clip_grad_norm"
            )
        self.enable_scaler = True

    def describe_data(self, vocabulary: dict, histories: dict) -> None:
        """Give the checkpoints the raw ids and the users' histories; see :mod:`.data.dataset`."""
        self.data_state = {"vocabulary": vocabulary, "histories": histories}

    # -- RecBole's hooks ------------------------------------------------------------------------

    def fit(
        self,
        train_data: AbstractDataLoader,
        valid_data: AbstractDataLoader | DomainLoaders | None = None,
        verbose: bool = True,
        saved: bool = True,
        **kwargs: Any,
    ) -> tuple[float, dict[str, float] | None]:
        """Train as RecBole's ``fit``; a run that was resumed goes on where it was.

        Raises:
            TrainingError: the loss, or a parameter, is not a finite number.
            CheckpointError: ``saved``, and the model's state is not plain data, or a file cannot be
                written.
        """
        self._saving, self._train_data = saved, train_data
        if saved:
            checkpoint.other_parameters(self.model)  # refuse now what cannot be saved later
        pretrains = getattr(self.model, "train_stage", "finetune") != "finetune"
        epochs = self.pretrain_epochs if pretrains else self.epochs
        finished = self._resumed_state is not None and (
            self.start_epoch >= epochs or self.cur_step > self.stopping_step
        )
        best = self.saved_model_file
        if not finished:
            super().fit(train_data, valid_data, verbose=verbose, saved=saved, **kwargs)
            self._end_epoch()
        if pretrains and saved:  # RecBole writes every save_step epochs, under another name
            self.saved_model_file = best
            self._save_checkpoint(self.start_epoch - 1 if finished else cast(int, self._epoch))
        return self.best_valid_score, self.best_valid_result

    def _train_epoch(
        self,
        train_data: AbstractDataLoader,
        epoch_idx: int,
        loss_func: Callable[[Interaction], Tensor | tuple[Tensor, ...]] | None = None,
        show_progress: bool = False,
    ) -> float | tuple[float, ...]:
        if self._resumed_state is not None:
            self._restore_randomness(train_data)
        else:
            self._end_epoch()
        self._epoch, self._batch = epoch_idx, 0
        self.set_learning_rates(epoch_idx)
        start = time.perf_counter()
        if isinstance(train_data, WindowLoader) and loss_func is None:
            loss_func = WindowLoss(
                self.model, self.config["carry_state"], self.config["later_targets"]
            )
        with _autocast_to(self.device.type, self.amp_dtype):
            loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        seconds = time.perf_counter() - start
        if not checkpoint.is_finite(self.model):
            self._stop("a parameter is not a finite number at the end of")
        total = sum(loss) if isinstance(loss, tuple) else loss
        self.history.append(
            {"epoch": epoch_idx, "train_seconds": seconds, "train_loss": float(total or 0.0)}
        )
        return loss

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> tuple[float, dict[str, float]]:
        start = time.perf_counter()
        if getattr(self.model, "item_memory", None) is not None:
            choose_weight(self.model, args[0], self.config)
        score, result = super()._valid_epoch(*args, **kwargs)
        self.history[-1].update(
            valid_seconds=time.perf_counter() - start,
            valid_score=float(score),
            valid_result=dict(result),
        )
        spent = (e["train_seconds"] + e.get("valid_seconds", 0.0) for e in self.history)
        self.history[-1]["seconds"] = sum(spent)
        return score, result

    def _end_epoch(self) -> None:
        """Save and report the epoch before, which RecBole's loop is now through with."""
        if self._epoch is None:
            return
        self._save_last()
        if self.on_epoch is not None and "valid_score" in self.history[-1]:
            self.on_epoch(self.history[-1])

    def _check_nan(self, loss: Tensor) -> None:
        self._batch += 1
        if not bool(torch.isfinite(loss)):
            self._stop(f"the loss is {loss.item()} in batch {self._batch} of")

    def _stop(self, what: str) -> NoReturn:
        kept = "there is no checkpoint yet"
        if self._saving and os.path.exists(self.last_model_file):
            kept = f"the state before that epoch is kept in {self.last_model_file}"
        raise TrainingError(
            f"{what} epoch {self._epoch}; {kept}; lower learning_rate, or set "
            "clip_grad_norm: {max_norm: 5}"
        )

    # -- checkpoints ----------------------------------------------------------------------------

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Write the best model, when RecBole's loop calls for it."""
        if not self.config["single_spec"] and self.config["local_rank"] != 0:
            return
        path = kwargs.get("saved_model_file", self.saved_model_file)
        state = checkpoint.model_state(self.config, self.model, epoch)
        state.update(self.data_state)
        state["valid_result"] = dict(self.history[-1].get("valid_result", {})) if epoch >= 0 else {}
        checkpoint.save_checkpoint(path, state)
        if verbose:
            self.logger.info(f"Saving current: {path}")

    def _save_last(self) -> None:
        """Write all that the next epoch depends on, once the epoch before it is over."""
        if not self._saving:
            return
        if not self.config["single_spec"] and self.config["local_rank"] != 0:
            return
        assert self._epoch is not None
        state = checkpoint.model_state(self.config, self.model, self._epoch)
        state.update(self.data_state)
        state["training"] = {
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            "best_valid_result": self.best_valid_result and dict(self.best_valid_result),
            "train_loss": self.train_loss_dict,
            "history": self.history,
            "optimizers": {k: v.state_dict() for k, v in self.optimizers().items()},
            # Counters such as the annealing step of RecBole's autoencoders: plain attributes that
            # training has changed.
            "model_numbers": {
                name: value
                for name, value in _numbers(self.model).items()
                if value != self._initial_numbers.get(name)
            },
            "random": checkpoint.random_state(),
            "generators": [g.get_state() for g in _generators(self._train_data)],
        }
        checkpoint.save_checkpoint(self.last_model_file, state)

    def resume(self, path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
        """Continue the run whose last checkpoint is ``path``, into the same files.

        Args:
            path: the run's ``.last.pth``.
            state: what :func:`.checkpoint.load_checkpoint` read from it.

        Raises:
            CheckpointError: not a ``.last.pth``, its ``.best.pth`` is missing, or one of the
                :data:`FIXED` or :data:`FIXED_MEMORY` settings is another now.
        """
        if "training" not in state or not str(path).endswith(LAST):
            raise CheckpointError(f"{path}: --resume takes the {LAST} file of a run")
        self._name_files(str(path).removesuffix(LAST))
        training = state["training"]
        if training["best_valid_result"] and not os.path.isfile(self.saved_model_file):
            raise CheckpointError(
                f"{path}: the best model so far, {self.saved_model_file}, is missing beside it"
            )
        known = [key for key in FIXED_MEMORY if key in state["config"]]
        for key in (*FIXED, *known):
            before = state["config"].get(key)
            if self.config[key] != before:
                raise CheckpointError(
                    f"{path}: {key} cannot change on resuming, from {before!r} to "
                    f"{self.config[key]!r}; start a new run for it"
                )
        checkpoint.restore_model(self.model, state, path)
        for name, value in training["model_numbers"].items():
            setattr(self.model, name, value)
        for name, optimizer in self.optimizers().items():
            if name in training["optimizers"]:
                optimizer.load_state_dict(training["optimizers"][name])
            if self.config["weight_decay"] != state["config"].get("weight_decay"):
                for group in optimizer.param_groups:  # given anew, it goes over the file's
                    group["weight_decay"] = self.config["weight_decay"]
        self.start_epoch = state["epoch"] + 1
        self.cur_step = training["cur_step"]
        self.best_valid_score = training["best_valid_score"]
        self.best_valid_result = training["best_valid_result"]
        self.train_loss_dict = dict(training["train_loss"])
        self.history = list(training["history"])
        self._resumed_state = training
        self.logger.info(f"Resuming {path} at epoch {self.start_epoch}")

    def _restore_randomness(self, train_data: AbstractDataLoader) -> None:
        """Put every random generator where it was, last thing before the first resumed epoch."""
        training, self._resumed_state = self._resumed_state, None
        assert training is not None
        for generator, saved in zip(_generators(train_data), training["generators"], strict=True):
            generator.set_state(saved.cpu())
        checkpoint.set_random_state(training["random"])


def _numbers(model: AbstractRecommender) -> dict[str, float]:
    """The attributes of a model that are numbers."""
    found = {k: v for k, v in vars(model).items() if isinstance(v, (int, float))}
    return {k: v for k, v in found.items() if k != "training"}  # train() and eval() set that one


def _generators(loader: AbstractDataLoader) -> list[torch.Generator]:
    """The random generators that decide a loader's order, those of the loaders inside included."""
    parts = [loader] + [v for v in vars(loader).values() if isinstance(v, AbstractDataLoader)]
    found = [getattr(part, "generator", None) for part in parts]  # a loader of loaders has none
    return [generator for generator in found if isinstance(generator, torch.Generator)]
