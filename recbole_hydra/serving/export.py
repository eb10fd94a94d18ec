"""A trained model as a folder that needs neither torch nor RecBole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from recbole_hydra import __version__
from recbole_hydra.errors import CheckpointError, ExportError
from recbole_hydra.layers import ItemMemory
from recbole_hydra.layers.repeat_bias import SCALE, RepeatBias
from recbole_hydra.model import Hydra, Mamba4Rec
from recbole_hydra.output_folder import write_json
from recbole_hydra.serving.compiled import first_items_of, read_vectors, weights_of
from recbole_hydra.serving.load import load_model

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_hydra.serving.reader import Reader

#: How far a vector of the graphs may be from the model's, in parts of the largest number in it.
CLOSE = 1e-4


def export_model(
    checkpoint: str | os.PathLike[str] | AbstractRecommender, folder: str | os.PathLike[str]
) -> Path:
    """Write a trained Hydra or Mamba4Rec for use without torch and RecBole.

    The folder holds graphs of ONNX (``step.onnx``, ``history.onnx``), the vectors of the items, the
    repeat bias, raw item ids, a manifest with the hash of each file, and ``reader.py``, which reads
    it with numpy and onnxruntime. It is there whole or not at all.

    Args:
        checkpoint: path of a checkpoint, or a model from :func:`~recbole_hydra.load_model`, which
            is in evaluation mode afterwards.
        folder: new, or empty.

    Returns:
        The folder.

    Raises:
        CheckpointError: as of ``load_model``, or the checkpoint has no vocabulary.
        ExportError: another model, onnx is not installed, or the folder is taken or cannot be
            written.
    """
    path = _free(folder)
    try:
        import onnx

        from recbole_hydra.serving.onnx_graph import Encoder, Table, history_model, step_model
        from recbole_hydra.serving.reader import BEFORE_MEMORY, FORMAT, MANIFEST, Reader, hash_of
    except ImportError as error:
        raise ExportError(
            f"export: {error.name} is not installed; pip install 'recbole-hydra[export]'"
        ) from error
    given = isinstance(checkpoint, torch.nn.Module)
    model = cast(Any, checkpoint if given else load_model(cast(str, checkpoint)))
    about = _about(model)
    if type(model) not in (Hydra, Mamba4Rec):
        raise ExportError(
            f"export: {type(model).__name__} has no graph; Hydra and Mamba4Rec themselves have, "
            "others recommend by recbole_hydra.recommend"
        )
    model.eval()
    with _whole(path) as room:
        files = _write_items(room, model)
        first = first_items_of(model)
        starts = [1] if first is None else [int(item) for item in first]
        weights, mambas = weights_of(model, lanes=1)
        layers = mambas.conv.shape[0] // len(starts)
        table = Table(files["read"], *_of_npy(room / files["read"]))
        graphs, size = [], 0
        for number, start in enumerate(starts):
            own = range(number * layers, (number + 1) * layers)
            encoder = Encoder(weights, mambas, own, table)
            size, suffix = sum(encoder.parts), f"-{number}" if len(starts) > 1 else ""
            graph = {"step": f"step{suffix}.onnx", "history": f"history{suffix}.onnx"}
            for kind, made in (("step", step_model(encoder)), ("history", history_model(encoder))):
                (room / graph[kind]).write_bytes(made.SerializeToString())
                onnx.checker.check_model(room / graph[kind], full_check=True)
            graphs.append({"first_item": start, **graph})
        shutil.copyfile(Path(__file__).with_name("reader.py"), room / "reader.py")
        manifest: dict[str, Any] = {
            "format": FORMAT if files["item_memory"] else BEFORE_MEMORY,
            "model": type(model).__name__,
            **about,
            "n_items": int(table.shape[0]),
            "width": int(table.shape[1]),
            "state_size": size,
            "graphs": graphs,
            "item_vectors": files["items"],
            "vocabulary": files["vocabulary"],
            "repeat_bias": files["repeat_bias"],
            "item_memory": files["item_memory"],
            "sha256": {file.name: _sha256(file) for file in sorted(room.iterdir())},
        }
        write_json(room / MANIFEST, {**manifest, "own_sha256": hash_of(manifest)})
        _verify(Reader(room), model)
    return path


def _about(model: Any) -> dict[str, Any]:
    """What the manifest says of a model's checkpoint."""
    known: Mapping[str, Any] | None = getattr(model, "checkpoint", None)
    if known is None:
        raise CheckpointError(
            f"{type(model).__name__}: is no model of load_model, so it has no raw ids"
        )
    config, vocabulary = known["config"], known["vocabulary"]
    if not vocabulary.field2id_token:
        raise CheckpointError(f"{known['path']}: holds no vocabulary, so no raw ids")
    length, domains = int(config["MAX_ITEM_LIST_LENGTH"]), getattr(vocabulary, "domains", None)
    return {
        "made_by": f"recbole_hydra {__version__}",
        "reading": "carry" if config["carry_state"] else "window",
        "window": None if config["carry_state"] else length,
        "MAX_ITEM_LIST_LENGTH": length,
        "domains": domains and [
            {"name": name, "first_item": begin, "end": end}
            for name, (begin, end) in zip(domains.names, domains.ranges(), strict=True)
        ],
    }  # fmt: skip


@torch.no_grad()
def _verify(reader: Reader, model: Any) -> None:
    """Read a history as a user of the folder will: what runs graphs has its own errors."""
    generator, device = np.random.default_rng(0), next(model.parameters()).device
    domains = reader.manifest["domains"] or [{"first_item": 1, "end": len(reader.tokens)}]
    for one in domains:
        length = min(8, reader.window or 8)
        ids = generator.integers(one["first_item"], one["end"], length)
        expected = model.encode(torch.from_numpy(ids)[None].to(device))[0, -1].cpu().numpy()
        state = reader.start()
        for item in ids.tolist():
            by_steps, state = reader.step(reader.tokens[item], state)
        at_once = reader.vector([reader.tokens[item] for item in ids.tolist()])
        for found in (by_steps, at_once):
            if not np.abs(found - expected).max() <= CLOSE * np.abs(expected).max():
                raise ExportError(
                    "export: ONNX Runtime computes other vectors than the model; nothing was "
                    "written, try another version of onnxruntime"
                )


def _write_items(room: Path, model: Any) -> dict[str, Any]:
    """Write what is known of the items; returns the files' names."""
    with torch.no_grad():
        table = np.ascontiguousarray(model.item_table.detach().float().cpu().numpy())
    read = read_vectors(model)
    files: dict[str, Any] = {"items": "items.npy", "read": "items.npy", "repeat_bias": None}
    files["item_memory"] = None
    np.save(room / "items.npy", table)
    if not np.array_equal(table, read):  # tie_embeddings: False
        files["read"] = "read.npy"
        np.save(room / "read.npy", read)
    bias: RepeatBias | None = model.repeat_bias
    if bias is not None:
        weight = bias.weight.detach().cpu()
        form = "shared" if len(weight) == 1 else "distance"
        if bias.item_weight is not None:
            form, weight = "item", weight + bias.item_weight.detach().cpu()
        np.save(room / "repeat_bias.npy", np.float32(SCALE) * weight.float().numpy())
        files["repeat_bias"] = {"form": form, "file": "repeat_bias.npy"}
    memory: ItemMemory | None = model.item_memory
    if memory is not None:
        own: dict[str, Any] = {"horizon": memory.horizon}
        own |= {name: float(getattr(memory, name)) for name in ("decay", "weight", "scale")}
        for name in ("starts", "items", "values"):
            own[name] = f"memory_{name}.npy"
            np.save(room / own[name], getattr(memory, name).cpu().numpy())
        files["item_memory"] = own
    vocabulary = model.checkpoint["vocabulary"]
    files["vocabulary"] = "vocabulary.json"
    tokens = [str(token) for token in vocabulary.field2id_token[vocabulary.iid_field]]
    write_json(room / files["vocabulary"], tokens)
    return files


def _of_npy(path: Path) -> tuple[int, tuple[int, int]]:
    """Where the numbers of a .npy file begin, and their shape."""
    array = np.load(path, mmap_mode="r")
    return path.stat().st_size - array.nbytes, array.shape


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


# -- the folder ------------------------------------------------------------------------------------


def _free(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder that is new, or empty."""
    path = Path(os.path.realpath(folder))
    if path == Path.cwd():
        raise ExportError(f"output {folder}: is the current folder; name a new one in it")
    try:
        is_taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise ExportError(f"output {folder}: cannot be read ({error.strerror})") from error
    if is_taken:
        raise ExportError(f"output {folder}: holds files; choose an empty or a new folder")
    return path


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to write into, which takes its place at the end; nothing is left
    after an error."""
    room = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        room.mkdir(parents=True)
        yield room
        if path.exists():
            path.rmdir()
        os.rename(room, path)
    except OSError as error:
        why = error.strerror or error
        raise ExportError(f"output {path}: cannot be written ({why}); choose another") from error
    finally:
        shutil.rmtree(room, ignore_errors=True)
