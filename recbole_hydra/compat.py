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
import importlib.abc
import importlib.util
import os
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import scipy.sparse
import torch

from recbole_hydra import metrics


def apply() -> None:
    """Make RecBole 1.2.1 run on the libraries that are installed. Calling it twice is harmless.

    Raises:
        ImportError: RecBole is missing, or of another version.
    """
    require_recbole()
    restore_numpy_aliases()
    silence_warnings()
    keep_anomaly_mode_off()

    from recbole.data.dataloader.abstract_dataloader import NegSampleDataLoader
    from recbole.data.dataloader.knowledge_dataloader import KGDataLoader
    from recbole.data.dataset import Dataset, SequentialDataset, dataset
    from recbole.data.transform import MaskItemSequence
    from recbole.sampler import sampler
    from recbole.trainer import PretrainTrainer, Trainer

    if getattr(Trainer, "_recbole_hydra", False):
        return
    Trainer._recbole_hydra = True
    Trainer.fit = _remember_dataset(Trainer.fit)
    Trainer._save_checkpoint = save_plain_checkpoint
    Trainer.resume_checkpoint = resume_plain_checkpoint
    Trainer.evaluate = _load_best_model_plainly(Trainer.evaluate)
    PretrainTrainer.save_pretrained_model = save_plain_pretrained_model
    Dataset.__init__ = _in_exact_order(Dataset.__init__)
    metrics.mend()
    Dataset._download = _without_barrier(Dataset._download)
    dataset.pd = atomic_files
    Dataset._load_data = _and_clean_lists(Dataset._load_data)
    Dataset._load_feat = _after_a_look(Dataset._load_feat)
    Dataset._remove_duplication = _our_way(Dataset._remove_duplication, "duplicates", "remove")
    Dataset._filter_by_field_value = _our_way(Dataset._filter_by_field_value, "filters", "apply")
    SequentialDataset._benchmark_presets = _our_way(
        SequentialDataset._benchmark_presets, "ready_made", "adopt"
    )
    _guard_samplers(sampler)
    NegSampleDataLoader.__init__ = _checking_negatives(NegSampleDataLoader.__init__)
    KGDataLoader.__init__ = _checking_negatives(KGDataLoader.__init__)
    MaskItemSequence._neg_sample = _guard_masked(MaskItemSequence._neg_sample)


# -- functions of RecBole that our files and loaders need -----------------------------------------


def replace_in(module: str, **functions) -> None:
    """Let a module of RecBole have these functions: now if it is imported, else once it is.

    Some import much: ``recbole.quick_start`` all of Ray. Delete when RecBole reads plain
    checkpoints, and its case study every loader.
    """
    if module in sys.modules:
        vars(sys.modules[module]).update(functions)
    else:
        sys.meta_path.insert(0, _AfterImport(module, functions))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds one module as ever, and puts functions into it once it has run."""

    def __init__(self, module, functions):
        self.module, self.functions = module, functions

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        run = spec.loader.exec_module

        def run_and_replace(module):
            run(module)
            vars(module).update(self.functions)

        spec.loader.exec_module = run_and_replace
        return spec


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

    Attributes:
        as_text: name of a column that is read as the text it is, whatever its type; None for none.
    """

    as_text = None

    def __getattr__(self, name):
        return getattr(pandas, name)

    def read_csv(self, path, delimiter, usecols, dtype, encoding, **_):
        """``pandas.read_csv`` with the arguments of RecBole's one call."""
        dtype = {
            column: str if column.rpartition(":")[0] == self.as_text else kind
            for column, kind in dtype.items()
        }
        missing = {str: [""], np.float64: ["", "nan", "NaN", "NA", "N/A", "null", "None"]}
        return pandas.read_csv(
            path,
            sep=delimiter if len(delimiter) == 1 else re.escape(delimiter),
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


#: What RecBole's reader has for pandas.
atomic_files = _PandasForAtomicFiles()


# Steps of RecBole's loading that fail without a word, or do something else than they say. What
# takes their place is in recbole_hydra.data; RecBole's own Config keeps RecBole's way. Delete each
# when RecBole's does what ours does.


def _our_way(recboles, module, name):
    """A method of RecBole's datasets that calls ``recbole_hydra.data.<module>.<name>`` instead."""

    @functools.wraps(recboles)
    def ours_or_recboles(self):
        from recbole_hydra.data.loading import is_ours

        if not is_ours(self.config):
            return recboles(self)
        return getattr(importlib.import_module(f"recbole_hydra.data.{module}"), name)(self)

    return ours_or_recboles


def _and_clean_lists(load_data):
    """RecBole's ``Dataset._load_data``, then padding is taken out of lists of items."""

    @functools.wraps(load_data)
    def load_and_clean(self, token, dataset_path):
        load_data(self, token, dataset_path)
        from recbole_hydra.data import loading, ready_made

        if loading.is_ours(self.config):
            loading.check_aliases(self)
            ready_made.clean_lists(self)

    return load_and_clean


def _after_a_look(load_feat):
    """RecBole's ``Dataset._load_feat``, with errors that name the file, the line and the remedy."""

    @functools.wraps(load_feat)
    def look_and_load(self, filepath, source):
        from recbole_hydra.data import loading

        if not loading.is_ours(self.config):
            return load_feat(self, filepath, source)
        return loading.load_feat(self, load_feat, filepath, source)

    return look_and_load


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


def _in_exact_order(init):
    """RecBole's ``Dataset.__init__``, for a dataset whose times are exact.

    RecBole keeps times as float32. Where the config says how to order (``time_order``; RecBole's
    own Config does not), the dataset gets the methods that keep them exact, whoever makes it.
    Delete when RecBole keeps times in full.
    """

    @functools.wraps(init)
    def init_in_exact_order(self, config):
        if config["time_order"] is not None:
            from recbole_hydra.data.times import with_exact_times

            self.__class__ = with_exact_times(type(self))
        init(self, config)

    return init_in_exact_order


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


# -- negative sampling ---------------------------------------------------------------------------

# RecBole draws negatives until none is a positive: for ever, where all that can be drawn are.
# Delete when its samplers notice.


def _guard_samplers(module):
    """Let RecBole's samplers raise DatasetError where they would never end."""
    module.AbstractSampler.sample_by_key_ids = _guard_keys(module.AbstractSampler.sample_by_key_ids)
    module.SeqSampler.sample_neg_sequence = _guard_sequence(module.SeqSampler.sample_neg_sequence)
    for sampler in (module.Sampler, module.KGSampler):
        sampler.get_used_ids = _in_one_line(sampler.get_used_ids)


def _no_negative(number, whose, what="items"):
    from recbole_hydra.errors import DatasetError

    return DatasetError(
        f"negative sampling would never end: of what can be drawn ({what}: {number}), nothing is "
        f"a negative for {whose}; BPR, and sampled rankings such as uni100, need two items, and "
        "one that the user has not had: use loss_type CE and mode full, or leave such users out "
        "with user_inter_num_interval"
    )


def _number_drawable(sampler) -> int:
    """How many ids a sampler draws from."""
    if sampler.distribution == "popularity":
        return len(sampler.prob)
    return (sampler.entity_num if hasattr(sampler, "entity_num") else sampler.item_num) - 1


def _refuse_endless(sampler, positives, names):
    """Raise DatasetError where one of ``positives``, sets of ids, leaves nothing to be drawn;
    ``names`` is called with its index, to say whose they are."""
    number = _number_drawable(sampler)
    if max(map(len, positives), default=0) < number:
        return
    popular = sampler.distribution == "popularity"
    drawable = set(sampler.prob) if popular else set(range(1, number + 1))
    for index, used in enumerate(positives):
        if drawable <= set(used):
            what = "entities" if hasattr(sampler, "entity_num") else "items"
            raise _no_negative(number, names(index), what)


def refuse_endless_sampling(sampler, keys, positives) -> None:
    """Raise DatasetError where a sampler of RecBole's would draw for ever.

    Args:
        sampler: of the phase. keys: what negatives are drawn for, users or head entities, (rows,).
        positives: the item or entity of each, (rows,), which is all that RepeatableSampler avoids.
    """
    keys = np.unique(np.asarray(keys)).tolist()
    if type(sampler).__name__ == "RepeatableSampler":
        items = np.unique(np.asarray(positives)).tolist()
        _refuse_endless(sampler, [{item} for item in items], lambda _: "an interaction")
    else:
        names = {"uid_field": "user", "hid_field": "head entity"}
        field = next((field for field in names if hasattr(sampler, field)), None)
        dataset = sampler.datasets[0] if hasattr(sampler, "datasets") else sampler.dataset

        def name(index):
            token = dataset.id2token(getattr(sampler, field), keys[index]) if field else keys[index]
            return f"{names.get(field, 'id')} {token}"

        _refuse_endless(sampler, [sampler.used_ids[key] for key in keys], name)


def _guard_keys(sample_by_key_ids):
    @functools.wraps(sample_by_key_ids)
    def sample(self, key_ids, num):
        if len(key_ids):
            _refuse_endless(self, self.used_ids[np.asarray(key_ids)], lambda _: "an interaction")
        return sample_by_key_ids(self, key_ids, num)

    return sample


def _guard_sequence(sample_neg_sequence):
    @functools.wraps(sample_neg_sequence)
    def sample(self, pos_sequence):
        if _number_drawable(self) < 2:
            positives = [{item} for item in np.asarray(pos_sequence).tolist()]
            _refuse_endless(self, positives, lambda _: "an interaction")
        return sample_neg_sequence(self, pos_sequence)

    return sample


def _guard_masked(neg_sample):
    """For BERT4Rec and S3Rec, which draw an item that is not in the history."""

    @functools.wraps(neg_sample)
    def sample(self, item_set, *n_items):
        number = (n_items[0] if n_items else self.n_items) - 1
        if len(item_set) >= number and len({*item_set} - {0}) >= number:
            raise _no_negative(number, "a history")
        return neg_sample(self, item_set, *n_items)

    return sample


def _guard_line(sampler):
    """For LINE, which draws a user who has not had the item."""

    @functools.wraps(sampler)
    def sample(self, key_ids):
        for key in key_ids.unique().tolist():
            if len(self.used_ids[key]) >= self.n_users - 1:
                raise _no_negative(self.n_users - 1, "an item", "users")
        return sampler(self, key_ids)

    return sample


def _in_one_line(get_used_ids):
    """RecBole's own check of users who have all items, as an error of the input."""

    @functools.wraps(get_used_ids)
    def get(self):
        from recbole_hydra.errors import DatasetError

        try:
            return get_used_ids(self)
        except ValueError as error:
            raise DatasetError(f"negative sampling: {error}") from error

    return get


def _checking_negatives(init):
    """Look for what cannot be sampled when a loader is made: later it may be in a process of its
    own, whose errors are not one line."""

    @functools.wraps(init)
    def init_and_check(self, config, dataset, sampler, shuffle=True):
        init(self, config, dataset, sampler, shuffle=shuffle)
        if hasattr(self, "hid_field"):
            heads, tails = dataset.kg_feat[self.hid_field], dataset.kg_feat[self.tid_field]
            refuse_endless_sampling(sampler, heads, tails)
        elif self.neg_sample_args["sample_num"] != "none":
            feat = dataset.inter_feat
            refuse_endless_sampling(sampler, feat[self.uid_field], feat[self.iid_field])

    return init_and_check


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
    """Repair a module of RecBole's models: a ``dok_matrix`` that it can update, Pop's count, and
    negative sampling that never ends."""
    for name, method, guard in (
        ("S3Rec", "_neg_sample", _guard_masked),
        ("LINE", "sampler", _guard_line),
    ):
        model = getattr(module, name, None)
        if model is not None and not hasattr(getattr(model, method), "__wrapped__"):
            setattr(model, method, guard(getattr(model, method)))
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
