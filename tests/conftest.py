import logging
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
import triton_interpreter  # noqa: F401  (before triton is imported)

import recbole_hydra

DATASETS = Path(__file__).parents[1] / "dataset"

#: Small enough to train in a second.
SMALL = {
    "data_path": str(DATASETS),
    "epochs": 2,
    "train_batch_size": 256,
    "show_progress": False,
    "MAX_ITEM_LIST_LENGTH": 12,
    "hidden_size": 16,
    "learning_rate": 0.01,
}
SMALL_HYDRA = {**SMALL, "num_heads": 2, "head_dim": 8, "d_state": 4, "ffn_size": 16}
SMALL_MAMBA4REC = {**SMALL, "d_state": 4}


#: The files that take the longest, so that no worker begins one when the others are done.
SLOWEST = ("tune", "docs", "compare", "domains", "selective_scan", "server", "recommender")


def pytest_collection_modifyitems(items):
    places = {f"test_{name}": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def small(model: str, **changes) -> dict:
    """The settings of a run that takes a second, with ``changes``."""
    base = {"Hydra": SMALL_HYDRA, "Mamba4Rec": SMALL_MAMBA4REC}.get(model, SMALL)
    return {**base, **changes}


def small_plan(space, model="Hydra", **changes):
    """A sweep of ``space`` on the tiny dataset, with ``changes`` to ``make_plan``'s arguments."""
    from recbole_hydra.tune.plan import make_plan

    taken = {"show_progress", "learning_rate"}
    settings = {key: value for key, value in small(model).items() if key not in taken}
    arguments = {
        "num_samples": None, "search": "random", "scheduler": "asha", "grace_period": None,
        "reduction_factor": None, "config_file_list": None, "config_dict": settings, "argv": (),
    }  # fmt: skip
    return make_plan(model, "tiny", space, **{**arguments, **changes})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run every test in a folder of its own: RecBole writes into the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pytest", "--a_foreign=argument"])
    # RecBole writes it, too: what there was, or nothing, is put back.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    yield tmp_path
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture(scope="module")
def local_ray():
    """Ray on this machine, for all sweeps of a module that do not start their own."""
    import ray

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """The address of a Redis that was started for the tests."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    folder = tmp_path_factory.mktemp("redis")
    socket = folder / "redis.sock"
    server = subprocess.Popen(
        [program, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not socket.exists():
        assert server.poll() is None
        time.sleep(0.05)
    yield f"unix://{socket}?db=0"
    server.terminate()
    server.wait()


@pytest.fixture
def redis_url(redis_server):
    """The same, empty."""
    import redis

    with redis.Redis.from_url(redis_server) as client:
        client.flushdb()
    return redis_server


@pytest.fixture
def run_small():
    """Train a model on the tiny dataset and return the result."""

    def run(model, saved=True, resume=None, **changes):
        return recbole_hydra.run_recbole_hydra(
            model, "tiny", config_dict=small(model, **changes), saved=saved, resume=resume
        )

    return run


@pytest.fixture(scope="module")
def train_once(tmp_path_factory):
    """Train a model on the tiny dataset with windows shorter than most histories, once per setting
    and module; returns its checkpoint."""
    made = {}

    def train(model, **changes):
        key = repr((model, changes))
        if key not in made:
            folder = str(tmp_path_factory.mktemp("saved"))
            given = small(model, MAX_ITEM_LIST_LENGTH=6, checkpoint_dir=folder, **changes)
            result = recbole_hydra.run_recbole_hydra(model, "tiny", config_dict=given)
            made[key] = result["best_checkpoint"]
        return made[key]

    return train


@pytest.fixture
def make_dataset(tmp_path):
    """Write a dataset of ``(user, item, timestamp)`` rows and return its data_path."""

    def make(name, rows, columns=("user_id:token", "item_id:token", "timestamp:float")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
        (folder / f"{name}.inter").write_text("\n".join(lines) + "\n")
        return str(folder.parent)

    return make


#: The words of the item texts of :func:`make_ring`.
TENS, ONES = ("red", "green", "blue", "grey"), ("one", "two", "three", "four", "five", "six")


@pytest.fixture
def make_ring(tmp_path):
    """Write a dataset whose items form a ring that users walk along, with text; returns data_path.

    Item i0, i1, ... has the title "red one", "red two", ...; ``cold`` more are in the .item file
    alone. Times are real unless ``positions``.
    """

    def make(
        name,
        items=24,
        users=40,
        cold=0,
        seed=0,
        start=0,
        positions=False,
        names=("user_id", "item_id"),
    ):
        rng = random.Random(seed)
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        uid, iid = names
        lines = [f"{uid}:token\t{iid}:token\ttimestamp:float"]
        for user in range(users):
            item, time = rng.randrange(items), start + 1_000 * rng.randrange(1_000)
            for step in range(rng.randint(5, 9)):
                lines.append(f"u{user}\ti{item}\t{step + 1 if positions else time}")
                item, time = (item + 1) % items, time + rng.randint(1, 500)
        (folder / f"{name}.inter").write_text("\n".join(lines) + "\n")
        lines = [f"{iid}:token\ttitle:token_seq\tbrand:token\tyear:float"]
        for item in range(items + cold):
            title = f"{TENS[item // 6 % 4]} {ONES[item % 6]}"
            lines.append(f"i{item}\t{title}\t{'acme' if item % 2 else ''}\t{1990 + item}")
        (folder / f"{name}.item").write_text("\n".join(lines) + "\n")
        return str(folder.parent)

    return make


@pytest.fixture(scope="session")
def make_llm(tmp_path_factory):
    """Make a language model with random weights and its tokenizer, once per kind and seed; returns
    its folder."""
    made = {}

    def make(kind="causal", seed=0):
        if (kind, seed) not in made:
            made[kind, seed] = folder = tmp_path_factory.mktemp(f"{kind}-llm-{seed}")
            _save_llm(folder, kind, seed)
        return str(made[kind, seed])

    return make


def _save_llm(folder, kind, seed):
    import tokenizers
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", "item", "title", "brand", "acme", ":", ","]
    words += [*TENS, *ONES]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.normalizer = tokenizers.normalizers.Lowercase()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "</s>"}
    size = {"vocab_size": len(words), "max_position_embeddings": 24}
    width = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    if kind == "causal":
        model = transformers.LlamaModel(
            transformers.LlamaConfig(**size, **width, intermediate_size=16, initializer_range=0.5)
        )
    else:
        special["cls_token"] = "[CLS]"
        model = transformers.BertModel(
            transformers.BertConfig(
                **size, **width, intermediate_size=16, initializer_range=0.5,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))
