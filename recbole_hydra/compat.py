"""All that exists only because of today's versions of RecBole's surroundings.

:func:`apply` runs when recbole_hydra is imported. It replaces methods of RecBole's classes and puts
back the numpy names RecBole reads; torch, scipy and pandas are left as they are (torch's anomaly
mode, which RecBole switches on, is off again; RecBole's reader of atomic files sees a pandas that
takes no quotes). Each item says what it is for and when it can be
deleted.
"""

import csv
import functools
import importlib
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import scipy.sparse
import torch


def apply() -> None:
    """Make RecBole 1.2.1 run on the libraries that are installed. Calling it twice is harmless.

    Raises:
        ImportError: RecBole is missing, or of another version.
    """
    require_recbole()
    restore_numpy_aliases()
    silence_warnings()
    keep_anomaly_mode_off()

    from recbole.data.dataset import Dataset, dataset
    from recbole.trainer import PretrainTrainer, Trainer

    if getattr(Trainer, "_recbole_hydra", False):
        return
    Trainer._recbole_hydra = True
    Trainer.fit = _remember_dataset(Trainer.fit)
    Trainer._save_checkpoint = save_plain_checkpoint
    Trainer.resume_checkpoint = resume_plain_checkpoint
    Trainer.evaluate = _load_best_model_plainly(Trainer.evaluate)
    PretrainTrainer.save_pretrained_model = save_plain_pretrained_model
    Dataset._download = _without_barrier(Dataset._download)
    dataset.pd = _PandasForAtomicFiles()


# -- installing ----------------------------------------------------------------------------------


def require_recbole() -> None:
    """Check that RecBole is here, which our metadata cannot ask for: see setup.cfg.

    Delete when RecBole's metadata takes a current Ray, and it is a dependency like the others.

    Raises:
        ImportError: it is missing, or of another version; ``name`` is "recbole".
    """
    remedy = "install it with: pip install --no-deps recbole==1.2.1"
    try:
        import recbole
    except ModuleNotFoundError as error:
        if error.name != "recbole":
            raise
        raise ModuleNotFoundError(f"RecBole is missing; {remedy}", name="recbole") from None
    version = getattr(recbole, "__version__", None) or "of no version"
    if version != "1.2.1":
        message = f"RecBole 1.2.1 is needed, and the one here is {version}; {remedy}"
        raise ImportError(message, name="recbole")


# -- reading -------------------------------------------------------------------------------------


class _PandasForAtomicFiles:
    """pandas for RecBole's reader of atomic files, which know neither quotes nor words for what is
    missing: in them a title may begin with a quotation mark, and an id be ``NA``.

    RecBole leaves both to pandas' defaults, under which such lines fail or are lost. Delete when
    RecBole does not.
    """

    def __getattr__(self, name):
        return getattr(pandas, name)

    def read_csv(self, path, delimiter, usecols, dtype, encoding, **_):
        """``pandas.read_csv`` with the arguments of RecBole's one call."""
        missing = {str: [""], np.float64: ["", "nan", "NaN", "NA", "N/A", "null", "None"]}
        return pandas.read_csv(
            path,
            sep=delimiter,
            usecols=usecols,
            dtype=dtype,
            encoding=encoding,
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            na_values={column: missing[kind] for column, kind in dtype.items()},
            # Python's own reads no field above 128 KB, C's no separator of several characters.
            engine="c" if len(delimiter) == 1 else "python",
            **({"float_precision": "round_trip"} if len(delimiter) == 1 else {}),
        )


# -- numpy ---------------------------------------------------------------------------------------


def restore_numpy_aliases() -> None:
    """Put back ``np.float_``, ``np.complex_`` and ``np.unicode_``, removed in numpy 2.0.

    RecBole's ``Config.compatibility_settings`` reads them. Delete when RecBole does not.
    """
    for name, kind in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        if name not in vars(np):
            setattr(np, name, kind)


# -- pandas and torch: warnings ------------------------------------------------------------------


def silence_warnings() -> None:
    """Hide the warnings that RecBole's and Ray's own lines cause, two dozen lines in every run.

    RecBole's announce pandas 3 and the end of ``torch.cuda.amp.GradScaler``, which our bounds on
    both libraries keep out. Delete when RecBole follows.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
    # Ray 2.6 reads pkg_resources, which our bound on setuptools keeps.
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning, r"ray\.")


# -- torch ---------------------------------------------------------------------------------------


def keep_anomaly_mode_off() -> None:
    """Undo ``torch.autograd.set_detect_anomaly(True)``, which RecBole's SINE calls when imported.

    All sequential models are imported together, so it holds for every run, and costs a stack trace
    per operation and a search for NaN per gradient: half of the time of a small step. Who wants
    anomaly mode switches it on after importing this package. Delete when SINE does not call it.
    """
    importlib.import_module("recbole.model.sequential_recommender")
    torch.autograd.set_detect_anomaly(False)


# RecBole's Trainer pickles its Config into the checkpoint; since 2.6, torch.load refuses that. The
# methods below write and read plain data instead. Delete when RecBole saves plain data.


def _remember_dataset(fit):
    """Let the trainer know the dataset, whose vocabulary belongs in its checkpoints."""

    @functools.wraps(fit)
    def fit_and_remember(self, train_data, *args, **kwargs):
        self.train_dataset = train_data._dataset
        return fit(self, train_data, *args, **kwargs)

    return fit_and_remember


def save_plain_checkpoint(self, epoch, verbose=True, **kwargs):
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


def resume_plain_checkpoint(self, resume_file):
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


def _load_best_model_plainly(evaluate):
    """RecBole's ``Trainer.evaluate``, reading the best model from plain data."""

    @functools.wraps(evaluate)
    def evaluate_plainly(
        self, eval_data, load_best_model=True, model_file=None, show_progress=False
    ):
        from recbole_hydra.checkpoint import load_checkpoint, restore_model

        if load_best_model and eval_data:
            path = model_file or self.saved_model_file
            restore_model(self.model, load_checkpoint(path, self.device), path)
            self.logger.info(f"Loading model structure and parameters from {path}")
        return evaluate(self, eval_data, load_best_model=False, show_progress=show_progress)

    return evaluate_plainly


def save_plain_pretrained_model(self, epoch, saved_model_file):
    """RecBole's ``PretrainTrainer.save_pretrained_model``, writing plain data.

    The models that read it (S3Rec, RaCT) call ``torch.load``, which takes plain data.
    """
    from recbole_hydra.checkpoint import model_state, save_checkpoint

    save_checkpoint(saved_model_file, model_state(self.config, self.model, epoch))
    self.saved_model_file = saved_model_file


def _without_barrier(download):
    """RecBole's ``Dataset._download``, which ends in a barrier of a process group.

    In a run of one process there is none and the barrier raises after the files have arrived.
    Delete when RecBole calls it only in runs of several processes.
    """

    @functools.wraps(download)
    def download_without_barrier(self):
        try:
            download(self)
        except (ValueError, RuntimeError):
            arrived = os.path.join(self.dataset_path, f"{self.dataset_name}.inter")
            if torch.distributed.is_initialized() or not os.path.isfile(arrived):
                raise

    return download_without_barrier


# -- RecBole's Pop -------------------------------------------------------------------------------


def count_every_interaction(self, interaction):
    """RecBole's ``Pop.calculate_loss``, which counts an item at most once per batch.

    With RecBole's batches of 2,048 the most popular items all look alike, and the baseline looks
    weak (RecBole's issues 1844 and 2198). Delete when RecBole counts every interaction.
    """
    items = interaction[self.ITEM_ID]
    self.item_cnt.index_add_(0, items, torch.ones_like(items).unsqueeze(1))
    self.max_cnt = torch.max(self.item_cnt, dim=0)[0]
    return torch.nn.Parameter(torch.zeros(1)).to(self.device)


# -- scipy ---------------------------------------------------------------------------------------


class _DokMatrix(scipy.sparse.dok_matrix):
    """scipy's ``dok_matrix`` with ``_update``, removed in scipy 1.13.

    RecBole's graph models (LightGCN, NGCF, ...) fill their adjacency matrix with it. Delete when
    RecBole builds them otherwise.
    """

    def _update(self, data):
        self._dict.update(data)


class _Scipy:
    """``scipy.sparse`` as a module of RecBole sees it, with our ``dok_matrix``."""

    dok_matrix = _DokMatrix

    def __getattr__(self, name):
        return getattr(scipy.sparse, name)


def repair_model_module(module) -> None:
    """Repair a module of RecBole's models: a ``dok_matrix`` that it can update, and Pop's count."""
    if module.__name__ == "recbole.model.general_recommender.pop":
        module.Pop.calculate_loss = count_every_interaction
    if getattr(module, "sp", None) is scipy.sparse and not hasattr(
        scipy.sparse.dok_matrix, "_update"
    ):
        module.sp = _Scipy()


def prepare_ray(cluster: bool) -> None:
    """Set what Ray reads from the environment when it is imported, unless the user has set it.

    Ray's own output is off, since ours takes its place. A trial that fails before its first
    evaluation has no score, which Ray takes for a mistake.

    ``ray start`` of current Ray demands a token once this machine has one, but a program that
    connects does not show it unless RAY_AUTH_MODE says so. Delete when ``ray.init`` does.

    Args:
        cluster: whether a running cluster is to be used.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    if cluster and ("RAY_AUTH_TOKEN" in os.environ or Path(token).is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def ray_tune() -> SimpleNamespace:
    """The names of Ray Tune that moved between Ray 2.6, which RecBole asks for, and today's.

    Delete when Ray 2.6 is no longer supported: all of them are in ``ray.tune`` now.

    Returns:
        ``report(metrics)``, ``FailureConfig``, ``RunConfig``, and ``run_settings``, what RunConfig
        takes besides.
    """
    from ray import tune

    if hasattr(tune, "RunConfig"):
        return SimpleNamespace(
            report=tune.report,
            RunConfig=tune.RunConfig,
            FailureConfig=tune.FailureConfig,
            run_settings={},
        )
    from ray.air import FailureConfig, RunConfig, session

    # Ray 2.6 copies a trial's folder from its node to the driver's, were it the same folder or not.
    return SimpleNamespace(
        report=session.report,
        RunConfig=RunConfig,
        FailureConfig=FailureConfig,
        run_settings={"sync_config": tune.SyncConfig(syncer=None)},
    )
