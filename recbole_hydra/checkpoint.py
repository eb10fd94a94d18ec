"""Checkpoint files: plain data only, written whole or not at all, read without running anything.

A file is one dict of tensors, numbers, strings, None, lists and dicts, which
``torch.load(path, weights_only=True)`` reads. RecBole pickles its Config instead, which newer torch
refuses to load, rightly: unpickling a file runs whatever its author put there.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import random
import tempfile
import uuid
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from recbole_hydra.errors import CheckpointError

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import AbstractRecommender

#: First entry of every file; the version rises when a reader of older files would misread it.
FORMAT = "recbole_hydra checkpoint"
VERSION = 1

#: Entries of a Config that follow from others, or from the machine, and are not stored.
DERIVED_KEYS = {
    "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "device", "model", "dataset", "single_spec",
    "valid_metric_bigger", "local_rank", "valid_neg_sample_args", "test_neg_sample_args",
}  # fmt: skip


# -- files ---------------------------------------------------------------------------------------


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path``: first beside it under another name, then renamed over it.

    A process that is killed meanwhile leaves the old file, or none, never half a file.

    Args:
        path: the file. Its folder is made if it is missing.
        state: dict with string keys; tuples are stored as lists, numpy scalars as numbers.

    Raises:
        CheckpointError: something in ``state`` is not plain data (it is named), or the file cannot
            be written.
    """
    path = Path(path)
    state = {"format": FORMAT, "version": VERSION, **to_plain(state, "checkpoint")}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: cannot be written ({_one_line(error)}); set checkpoint_dir to a folder that "
            "can, with room for the file"
        ) from error


def load_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Read a file written by :func:`save_checkpoint`; nothing in it is executed.

    Args:
        path: the file.
        map_location: device of the tensors.

    Raises:
        CheckpointError: no such file, a truncated or corrupt one, one with a pickled payload (from
            RecBole or anyone else), or one of another format or a newer version.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    try:
        if damaged := _damaged_part(path):
            raise EOFError(f"{damaged} is damaged")
        state = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_explain_pickle(path)}") from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ... by damage
        raise CheckpointError(
            f"{path}: truncated or corrupt ({_one_line(error)}); use the other file of the run, "
            "or an earlier one"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a checkpoint of recbole_hydra; if it is a bare state_dict, build the "
            "model and call model.load_state_dict"
        )
    if state["version"] > VERSION:
        raise CheckpointError(
            f"{path}: written by a newer recbole_hydra (format {state['version']}, this one reads "
            f"up to {VERSION}); upgrade recbole_hydra"
        )
    return state


def _damaged_part(path: Path) -> str | None:
    """The part of a file whose checksum is another: torch reads on without a look at it."""
    with suppress(Exception), zipfile.ZipFile(path) as parts:  # what is none, torch names
        return parts.testzip()
    return None


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make ``folder`` and write a file in it, so that a run fails before it trains, not after.

    Raises:
        CheckpointError: it cannot be made or written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CheckpointError(
            f"output folder {folder}: cannot be written ({error.strerror}); choose another with "
            "--checkpoint_dir"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _explain_pickle(path: Path) -> str:
    """Say what a file that torch refused to unpickle holds, by reading its pickle's opcodes."""
    names = _pickled_names(path)
    if any(name.startswith("recbole.config") for name in names):
        return (
            "a checkpoint of RecBole itself, which pickles its Config; if you trust the file, "
            "bring its weights over: torch.save(torch.load(FILE, weights_only=False)"
            "['state_dict'], 'weights.pth'), then model.load_state_dict(torch.load('weights.pth'))"
        )
    harmless = ("torch", "collections", "numpy")
    foreign = sorted(name for name in names if name.split(".")[0] not in harmless)
    if foreign:
        return (
            f"refused, nothing was run: the file pickles {', '.join(foreign[:3])}, which would "
            "execute code on loading; checkpoints of recbole_hydra hold plain data only"
        )
    return "truncated or corrupt, or not a checkpoint of recbole_hydra"


def _pickled_names(path: Path) -> set[str]:
    """The importable names that a pickle refers to, without unpickling it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inner = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                data = archive.read(inner)
        else:
            data = path.read_bytes()
    except (OSError, StopIteration, zipfile.BadZipFile):
        return set()
    names: set[str] = set()
    strings: list[str] = []
    stream = io.BytesIO(data)
    while stream.tell() < len(data):  # torch's older format is several pickles, then raw tensors
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    names.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
        except ValueError:  # not a pickle from here on
            break
    return names


# -- plain data ----------------------------------------------------------------------------------


def to_plain(value: Any, where: str) -> Any:
    """Return ``value`` as plain data: tensors, numbers, strings, None, and lists and dicts of them.

    Args:
        where: name of the value, for the message.

    Raises:
        CheckpointError: anything else, by name and type.
    """
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.generic):  # before the numbers: np.float64 is a float
        return value.item()
    for kind in (bool, int, float, str):
        if isinstance(value, kind) and not isinstance(value, Enum):
            return kind(value)  # a subclass, such as torch's version string, becomes its base
    if isinstance(value, dict):
        return {
            key if isinstance(key, int) else str(key): to_plain(item, f"{where}.{key}")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    name = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
    raise CheckpointError(
        f"{where} is a {name}; a checkpoint holds tensors, numbers, strings, lists and dicts only"
    )


def plain_settings(config: Config) -> dict[str, Any]:
    """The settings of a Config, ours or RecBole's, from which the same Config can be made again."""
    settings = {k: v for k, v in config.final_config_dict.items() if k not in DERIVED_KEYS}
    # RecBole appends the dataset's name to data_path, and spells "no sampling" as a dict.
    settings["data_path"] = os.path.dirname(settings["data_path"])
    if settings["train_neg_sample_args"].get("distribution") == "none":
        settings["train_neg_sample_args"] = None
    return to_plain(settings, "config")


def vocabulary(dataset: Dataset) -> dict[str, list[Any]]:
    """The raw ids of users and items of a RecBole dataset by internal id, row 0 the padding; and,
    where the dataset has them, the texts of the items and where each domain's items begin."""
    fields = {"user": dataset.uid_field, "item": dataset.iid_field}
    names = {
        name: [str(token) for token in dataset.field2id_token[field]]
        for name, field in fields.items()
        if field in dataset.field2id_token
    }
    if hasattr(dataset, "item_text"):
        names["item_text"] = list(dataset.item_text)
    if hasattr(dataset, "domains"):
        names["domain_start"] = list(dataset.domains.start)
    return names


def other_parameters(model: AbstractRecommender) -> dict[str, Any]:
    """What a RecBole model keeps outside its state_dict (``other_parameter_name``), as plain data.

    Modules among it are left out: the state_dict has them. Matrices of numpy and SciPy become
    tensors, see :func:`_encoded`.

    Raises:
        CheckpointError: part of it is neither that nor plain data.
    """
    modules = {id(module) for module in model.modules()}
    found = {k: v for k, v in model.other_parameter().items() if id(v) not in modules}
    try:
        return to_plain(_encoded(found), type(model).__name__)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}: {type(model).__name__} cannot be checkpointed; run it with saved=False"
        ) from None


def unregistered_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that require a gradient and are no parameters, so that no state_dict has them, by
    the name of their attribute: RecBole's FwFM draws its weights so."""
    return {
        f"{prefix}.{name}".lstrip("."): value.detach()
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor) and value.is_leaf and value.requires_grad
    }


#: The entry that marks what :func:`_encoded` has made of an array or a sparse matrix.
_KIND = "recbole_hydra kind"


def _encoded(value: Any) -> Any:
    """``value`` with arrays and matrices of numpy and SciPy, at any depth, as dicts of tensors."""
    import scipy.sparse

    if scipy.sparse.issparse(value):  # before the dicts: one of SciPy's formats is one
        rows = value.tocsc() if value.format == "csc" else value.tocsr()  # keeps every order
        return {
            _KIND: type(value).__name__,
            "shape": list(value.shape),
            "values": torch.from_numpy(rows.data.copy()),
            "indices": torch.from_numpy(rows.indices.astype(np.int64)),
            "starts": torch.from_numpy(rows.indptr.astype(np.int64)),
        }
    if isinstance(value, dict):
        return {key: _encoded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        # RecBole's EASE has a numpy matrix, whose product is another than an array's.
        kind = "matrix" if isinstance(value, np.matrix) else "array"
        return {_KIND: kind, "values": torch.from_numpy(np.array(value))}
    return value


def _decoded(value: Any, device: torch.device) -> Any:
    """Undo :func:`_encoded`; tensors go to ``device``."""
    import scipy.sparse

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [_decoded(item, device) for item in value]
    if not isinstance(value, dict):
        return value
    if _KIND not in value:
        return {key: _decoded(item, device) for key, item in value.items()}
    kind, values = value[_KIND], value["values"].cpu().numpy()
    if kind in ("array", "matrix"):
        return np.asmatrix(values) if kind == "matrix" else values
    layout, _, family = kind.partition("_")  # as in csr_matrix, lil_array
    parts = values, value["indices"].cpu().numpy(), value["starts"].cpu().numpy()
    rows = "csc" if layout == "csc" else "csr"
    compressed = getattr(scipy.sparse, f"{rows}_{family}")(parts, shape=tuple(value["shape"]))
    return compressed.asformat(layout)


def model_state(config: Config, model: AbstractRecommender, epoch: int) -> dict[str, Any]:
    """What it takes to make ``model`` again: its names, settings, weights, and the epoch."""
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "config": plain_settings(config),
        "epoch": epoch,
        "state_dict": model.state_dict(),
        "other_parameter": other_parameters(model),
        "unregistered": unregistered_weights(model),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }


def restore_model(
    model: AbstractRecommender, state: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
    """Load the weights of a checkpoint into ``model``.

    Raises:
        CheckpointError: they belong to another model or other sizes.
    """
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: its weights do not fit this {type(model).__name__} ({_one_line(error)})"
        ) from error
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.load_other_parameter(_decoded(state["other_parameter"], device))
    for key, value in state.get("unregistered", {}).items():
        prefix, _, name = key.rpartition(".")
        setattr(model.get_submodule(prefix), name, value.to(device).requires_grad_())


# -- random generators ---------------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's global random generators, as plain data."""
    of_numpy = cast("tuple[str, np.ndarray, int, int, float]", np.random.get_state())
    _, keys, position, has_gauss, cached = of_numpy
    version, numbers, gauss = random.getstate()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back to a state from :func:`random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    keys = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def is_finite(model: torch.nn.Module) -> bool:
    """Whether every parameter of ``model`` is finite."""
    return all(math.isfinite(float(p.detach().sum())) for p in model.parameters())
