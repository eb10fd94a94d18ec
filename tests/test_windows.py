"""Training on every position: the same rows, losses and gradients as RecBole's prefixes."""

import numpy as np
import pytest
import torch
from conftest import small
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_hydra import Config, run_recbole_hydra
from recbole_hydra.data import create_dataset, split_dataset
from recbole_hydra.data.targets import POSITION, TargetDataset
from recbole_hydra.data.windows import bucketed_batches, carried_batches, cut_windows
from recbole_hydra.errors import ConfigError, DatasetError
from recbole_hydra.training.window_loss import WindowLoss

MODELS = ["Hydra", "Mamba4Rec", "SASRec", "GRU4Rec"]
LENGTH = 8  # MAX_ITEM_LIST_LENGTH of these tests

#: Unix seconds: RecBole's float32 keeps 64-second steps of them, so that these collide.
NOW = 1_700_000_000


def write(folder, users):
    """Write a dataset of ``{user: [(item, time), ...]}`` and return its data_path."""
    (folder / "data" / "drawn").mkdir(parents=True, exist_ok=True)
    rows = [(u, i, t) for u, history in users.items() for i, t in history]
    order = np.random.default_rng(len(rows)).permutation(len(rows))  # the file is not sorted
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += ["\t".join(map(str, rows[k])) for k in order]
    (folder / "data" / "drawn" / "drawn.inter").write_text("\n".join(lines) + "\n")
    return str(folder / "data")


#: No dropout, by the name each model gives it.
NO_DROPOUT = {
    "Hydra": ["dropout_prob"],
    "Mamba4Rec": ["dropout_prob"],
    "SASRec": ["hidden_dropout_prob", "attn_dropout_prob"],
    "GRU4Rec": ["dropout_prob"],
}


def prepare(data_path, mode, model="GRU4Rec", dataset="drawn", **changes):
    """Return the config and the loaders of one training mode."""
    settings = {
        "data_path": data_path,
        "training_mode": mode,
        "MAX_ITEM_LIST_LENGTH": LENGTH,
        "train_batch_size": 100_000,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        **{key: 0.0 for key in NO_DROPOUT[model]},
        **changes,
    }
    config = Config(model, dataset, config_dict=small(model, **settings))
    return config, split_dataset(config, create_dataset(config))


def rows_of(dataset):
    """The rows of a split as plain columns."""
    return dataset[list(range(len(dataset)))].interaction if len(dataset) else {}


def assert_same_rows(got, want):
    assert len(got) == len(want)
    got, want = rows_of(got), rows_of(want)
    assert set(got) == set(want)
    for name, column in want.items():
        assert got[name].dtype == column.dtype and torch.equal(got[name], column), name


# -- rows ------------------------------------------------------------------------------------------

histories = st.dictionaries(
    st.integers(1, 50).map(lambda u: f"u{u}"),
    st.lists(
        st.tuples(st.integers(1, 9).map(lambda i: f"i{i}"), st.integers(NOW, NOW + 300)),
        min_size=1,
        max_size=LENGTH + 3,  # LENGTH to train on, one before them, one each to validate and test
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("drawn")


@settings(max_examples=25, deadline=None)
@given(histories)
def test_the_split_is_recboles_row_by_row(shared_folder, users):
    users = {**users, "one": [("i1", NOW)], "two": [("i1", NOW), ("i1", NOW)]}
    users["three"] = [("i2", NOW + 9), ("i1", NOW), ("i2", NOW + 9)]
    users["five"] = [(f"i{n}", NOW - n) for n in range(5)]
    path = write(shared_folder, users)
    _, prefixes = prepare(path, "augmentation")
    _, windows = prepare(path, "autoregressive")
    for got, want in zip(windows, prefixes, strict=True):
        assert isinstance(got._dataset, TargetDataset)
        assert_same_rows(got._dataset, want._dataset)

    # The loss of a small model, and its gradients, through the loaders.
    assert_same_loss(path, "GRU4Rec", "CE", torch.float64, 1e-8, users)


@pytest.mark.parametrize(
    "split",
    [
        {"LS": "valid_and_test"},
        {"LS": "valid_only"},
        {"LS": "test_only"},
        {"RS": [0.6, 0.2, 0.2]},
        {"TS": [0.6, 0.2, 0.2]},
    ],
)
@pytest.mark.parametrize("group_by", ["user", None])
def test_every_split_of_recbole(tmp_path, split, group_by):
    rng = np.random.default_rng(0)
    users = {
        f"u{u}": [
            (f"i{i % 400}", NOW + 999 * int(t)) for i, t in rng.integers(1, 3000, (1 + u % 13, 2))
        ]
        for u in range(40)
    }
    path = write(tmp_path, users)
    changes = {"eval_args": {"split": split, "group_by": group_by}}
    _, prefixes = prepare(path, "augmentation", **changes)
    _, windows = prepare(path, "autoregressive", **changes)
    for got, want in zip(windows, prefixes, strict=True):
        assert_same_rows(got._dataset, want._dataset)
    # What is trained on are the targets of RecBole's train rows, each once.
    batch = next(iter(windows[0]))
    targets = batch["item_id"]
    user = batch["user_id"][:, None].expand_as(targets)
    got = sorted(zip(user[targets > 0].tolist(), targets[targets > 0].tolist(), strict=True))
    want = rows_of(prefixes[0]._dataset)
    assert got == sorted(zip(want["user_id"].tolist(), want["item_id"].tolist(), strict=True))


def test_other_columns_and_unused_ones(make_dataset):
    rows = [(u, f"i{n % 5}", n, 10 * n, f"c{n % 3}") for u in ("a", "b") for n in range(7)]
    columns = ("user_id:token", "item_id:token", "timestamp:float", "price:float", "kind:token")
    path = make_dataset("wide", rows, columns)
    for unused in (None, {"inter": ["timestamp", "price_list"]}):
        changes = {"load_col": {"inter": "*"}, "unused_col": unused, "dataset": "wide"}
        changes["load_col"] = {"inter": [c.partition(":")[0] for c in columns]}
        _, prefixes = prepare(path, "augmentation", **changes)
        _, windows = prepare(path, "autoregressive", **changes)
        assert_same_rows(windows[1]._dataset, prefixes[1]._dataset)
        one, slices = windows[1]._dataset[1], windows[1]._dataset[0:2]
        assert one["item_id_list"].shape == (LENGTH,)
        assert torch.equal(slices["item_id_list"][1], one["item_id_list"])


def test_sampled_evaluation_works_on_the_rows(tmp_path):
    users = {f"u{u}": [(f"i{(u + n) % 60}", NOW + n) for n in range(9)] for u in range(20)}
    changes = {"eval_args": {"mode": "uni50"}, "epochs": 1}
    results = []
    for mode in ("autoregressive", "augmentation"):
        _, (_, valid, _) = prepare(write(tmp_path, users), mode, **changes)
        np.random.seed(0)
        results.append(next(iter(valid))[0])
    for name, column in results[1].interaction.items():
        assert torch.equal(results[0][name], column)


# -- losses and gradients --------------------------------------------------------------------------


def negative_of(user, length, n_items):
    """Some negative that depends on the row only, for both modes."""
    return 1 + (user * 31 + length * 7) % (n_items - 1)


def bias_on_repeats(model):
    """Let Hydra's scores depend on what its history holds, as they do once it is trained."""
    if getattr(model, "repeat_bias", None) is not None:
        for parameter in model.repeat_bias.parameters():
            torch.nn.init.normal_(parameter, std=0.1)


def loss_sum_and_gradients(model, loss, count):
    model.zero_grad()
    (loss * count).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return (loss * count).detach(), gradients


def assert_same_loss(path, model_name, loss_type, dtype, tolerance, users, **changes):
    changes = {"loss_type": loss_type, **changes}
    config, prefixes = prepare(path, "augmentation", model_name, **changes)
    _, windows = prepare(path, "autoregressive", model_name, **changes)
    torch.manual_seed(0)
    model = config.model_class(config, windows[0]._dataset).to(dtype)
    bias_on_repeats(model)
    n_items = model.n_items

    rows = prefixes[0]._dataset[list(range(len(prefixes[0]._dataset)))]
    (batch,) = list(windows[0])
    if loss_type == "BPR":
        rows["neg_item_id"] = negative_of(rows["user_id"], rows["item_length"], n_items)
        length = 1 + torch.arange(batch["item_id"].shape[1])
        negatives = negative_of(batch["user_id"][:, None], length, n_items)
        batch["neg_item_id"] = negatives.unsqueeze(2)
    want, want_gradients = loss_sum_and_gradients(model, model.calculate_loss(rows), len(rows))
    loss = WindowLoss(model)(batch)
    got, gradients = loss_sum_and_gradients(model, loss, int((batch["item_id"] > 0).sum()))
    assert abs(float(got - want)) <= tolerance * abs(float(want))
    assert set(gradients) == set(want_gradients)
    largest = max(float(g.abs().max()) for g in want_gradients.values())
    for name, gradient in want_gradients.items():
        assert float((gradients[name] - gradient).abs().max()) <= tolerance * largest, name


@pytest.fixture(scope="module")
def short_histories(tmp_path_factory):
    """Users with 1 to LENGTH + 3 interactions, so that none trains on more than LENGTH items."""
    rng = np.random.default_rng(1)
    users = {
        f"u{u}": [(f"i{i}", NOW + int(t)) for i, t in rng.integers(1, (30, 900), (n, 2))]
        for u, n in enumerate([1, 2, 3, 4, LENGTH, LENGTH + 1, LENGTH + 3] * 3)
    }
    return write(tmp_path_factory.mktemp("short"), users), users


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
@pytest.mark.parametrize("model", MODELS)
def test_equals_the_prefixes(short_histories, model, loss_type, dtype, tolerance):
    path, users = short_histories
    forms = ("none", "item", "shared", "distance") if model == "Hydra" else (None,)
    for form in forms:
        changes = {} if form is None else {"repeat_bias": form}
        assert_same_loss(path, model, loss_type, dtype, tolerance, users, **changes)


# -- windows ---------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.integers(1, 20).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size))),
)
def test_every_target_is_counted_once_and_has_its_context(inputs, size_and_overlap):
    size, overlap = size_and_overlap
    last = np.cumsum([n + 1 for n in inputs]) - 1
    first = last - inputs
    is_target = np.ones(last[-1] + 1, dtype=bool)
    is_target[first] = False
    user = 10 + np.arange(len(inputs))
    windows = cut_windows(first, last, user, is_target, size, overlap)
    assert windows.length.max() <= size
    counted = []
    for k in range(len(windows)):
        start, begin = windows.start[k], first[windows.user[k] - 10]
        targets = range(start + windows.counted[k] + 1, start + windows.length[k] + 1)
        assert len(targets) == windows.targets[k] > 0
        for target in targets:
            assert target - start >= min(overlap, target - begin)
        counted += targets
    assert counted == np.flatnonzero(is_target).tolist()


def some_windows(seed=0, users=200, size=20):
    rng = np.random.default_rng(seed)
    inputs = rng.integers(1, 100, users)
    last = np.cumsum(inputs + 1) - 1
    is_target = np.ones(last[-1] + 1, dtype=bool)
    is_target[last - inputs] = False
    return cut_windows(last - inputs, last, np.arange(users), is_target, size, 0), inputs.sum()


@pytest.mark.parametrize("budget", [1, 19, 64, 10**9])
@pytest.mark.parametrize("plan", ["bucketed", "carried"])
def test_a_batch_is_as_many_whole_windows_as_fit(plan, budget):
    windows, total = some_windows()

    def batches(seed):
        generator = torch.Generator().manual_seed(seed)
        if plan == "carried":
            return carried_batches(windows, budget, generator)
        return bucketed_batches(windows, np.arange(len(windows)), budget, generator)

    drawn = batches(0)
    assert sorted(np.concatenate(drawn).tolist()) == list(range(len(windows)))
    sizes = [int(windows.targets[batch].sum()) for batch in drawn]
    assert sum(sizes) == total
    for batch, targets in zip(drawn, sizes, strict=True):
        assert targets <= budget or len(batch) == 1
    assert [b.tolist() for b in batches(0)] == [b.tolist() for b in drawn]
    if budget < 10**9:
        assert [b.tolist() for b in batches(1)] != [b.tolist() for b in drawn]
    if plan == "bucketed" and budget == 64:
        assert len(drawn) < 1.5 * total / budget
        padded = sum(len(b) * windows.length[b].max() for b in drawn)
        assert padded < 1.1 * windows.length.sum()
    if plan == "carried":
        turn = {w: k for k, batch in enumerate(drawn) for w in batch.tolist()}
        for w in np.flatnonzero(windows.stage > 0):
            assert turn[w] > turn[w - 1]


def test_long_histories_through_the_loader(tmp_path):
    users = {f"u{u}": [(f"i{n % 50}", n) for n in range(10 + 7 * u)] for u in range(8)}
    path = write(tmp_path, users)
    for overlap, least in ((None, LENGTH // 2), (0, 1), (LENGTH, LENGTH)):
        config, (train, *_) = prepare(
            path, "autoregressive", window_overlap=overlap, train_batch_size=40
        )
        seen = {}
        for batch in train:
            assert batch["item_id_list"].shape[1] == int(batch["item_length"].max()) <= LENGTH
            for user, items, targets in zip(
                batch["user_id"], batch["item_id_list"], batch["item_id"], strict=True
            ):
                history = train._dataset.timeline["item_id"]
                begin = int((train._dataset.timeline["user_id"] < user).sum())
                for t in targets.nonzero().squeeze(1).tolist():
                    # Items repeat every 50 interactions: where the window lies in the history.
                    place = [
                        p for p in range(t + 1, len(history) - begin)
                        if torch.equal(history[begin + p - t - 1 : begin + p], items[: t + 1])
                        and history[begin + p] == targets[t]
                        and (int(user), p) not in seen
                    ]  # fmt: skip
                    seen[int(user), place[0]] = t + 1
                    assert t + 1 >= min(least, place[0] % 50)
        assert len(seen) == len(train._dataset)


def test_the_dataset_does_not_grow_with_the_length_of_a_row(tmp_path):
    users = {f"u{u}": [(f"i{n % 50}", n) for n in range(60)] for u in range(20)}
    path = write(tmp_path, users)

    def bytes_held(length):
        _, (train, *_) = prepare(path, "autoregressive", MAX_ITEM_LIST_LENGTH=length)
        columns = [*train._dataset.timeline.interaction.values()]
        columns += [*train._dataset.inter_feat.interaction.values(), train.is_target]
        arrays = [x.nbytes for x in vars(train.windows).values()]
        return sum(x.nbytes for x in columns) + sum(arrays)

    assert bytes_held(10_000) <= bytes_held(10) <= 20 * 60 * 100


def test_batches_change_from_epoch_to_epoch_and_come_back_with_the_seed(tmp_path):
    users = {f"u{u}": [(f"i{n}", n) for n in range(5 + u % 9)] for u in range(40)}
    path = write(tmp_path, users)

    def epochs(seed):
        _, (train, *_) = prepare(path, "autoregressive", train_batch_size=20, seed=seed)
        drawn = []
        for _ in range(2):
            announced = len(train)
            drawn.append([batch["user_id"].tolist() for batch in train])
            assert len(drawn[-1]) == announced
        return drawn

    first, second = epochs(1)
    assert first != second
    assert epochs(1) == [first, second]
    assert epochs(2) != [first, second]


def test_negatives_are_recboles_one_set_per_target(tmp_path):
    users = {f"u{u}": [(f"i{n + u}", n) for n in range(5 + u)] for u in range(9)}
    sampling = {"distribution": "uniform", "sample_num": 3}
    changes = {"loss_type": "BPR", "train_neg_sample_args": sampling, "train_batch_size": 30}
    _, (train, *_) = prepare(write(tmp_path, users), "autoregressive", "Hydra", **changes)
    for batch in train:
        counts = batch["item_id"] > 0
        assert counts.sum() <= 10 or len(counts) == 1  # RecBole's batch size counts negatives
        negatives = batch["neg_item_id"]
        assert negatives.shape == (*counts.shape, 3)
        assert (negatives[counts] > 0).all() and (negatives[~counts] == 0).all()
        assert (negatives != batch["item_id"].unsqueeze(2))[counts].all()


# -- evaluation ------------------------------------------------------------------------------------


RANKING = ["Hit", "NDCG", "MRR", "MAP", "Recall", "Precision"]


@pytest.mark.parametrize(
    "model, metrics",
    [
        *((model, RANKING) for model in MODELS),
        ("GRU4Rec", ["NDCG", "GAUC"]),  # needs all ranks: RecBole's collector does that one
    ],
)
def test_evaluation_gives_the_same_metrics(run_small, model, metrics, monkeypatch):
    from recbole_hydra import load_data_and_model
    from recbole_hydra.data import evaluation
    from recbole_hydra.training.trainer import get_trainer

    monkeypatch.setattr(evaluation, "BLOCK_ITEMS", 100)  # many blocks
    result = run_small(
        model, epochs=1, training_mode="autoregressive", metrics=metrics, topk=[5, 10]
    )
    path = result["best_checkpoint"]
    changes = {"training_mode": "augmentation", "show_progress": False}
    config, loaded, _, _, valid, test = load_data_and_model(path, config_dict=changes)
    trainer = get_trainer(config)(config, loaded)
    assert trainer.evaluate(valid, load_best_model=False) == result["best_valid_result"]
    assert trainer.evaluate(test, load_best_model=False) == result["test_result"]


def test_blocks_fit_the_memory(monkeypatch):
    from recbole_hydra.data import evaluation

    lengths = np.random.default_rng(0).integers(1, 3000, 500)
    cut = evaluation.blocks(lengths, n_items=1000, most_rows=64)
    assert sorted(sum(cut, [])) == list(range(500))
    for block in cut:
        assert len(block) <= 64
        longest = lengths[block].max()
        assert len(block) == 1 or len(block) * longest <= evaluation.BLOCK_ITEMS
    assert max(map(len, evaluation.blocks(lengths, 2**20, 4096))) == 4


def test_the_update_is_fused_and_the_same(run_small):
    results = []
    for learner in ("adam", "adamw", "sgd", "rmsprop"):
        result = run_small("GRU4Rec", learner=learner, epochs=1, saved=False)
        results.append(result["history"][0]["train_loss"])
    assert all(np.isfinite(results))

    from recbole_hydra.training.trainer import get_trainer

    for mode, fused in (("autoregressive", True), ("augmentation", None)):
        config = Config("Hydra", "tiny", config_dict=small("Hydra", training_mode=mode))
        train, *_ = split_dataset(config, create_dataset(config))
        trainer = get_trainer(config)(config, config.model_class(config, train._dataset))
        (group,) = trainer.optimizer.param_groups
        assert group["fused"] is fused and group["lr"] == config["learning_rate"]
        assert len(group["params"]) == len(list(trainer.model.parameters()))


# -- carried state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", ["Hydra", "Mamba4Rec"])
def test_carried_windows_see_the_whole_history(tmp_path, model_name):
    users = {f"u{u}": [(f"i{(u * n) % 40}", n) for n in range(5 + 9 * u)] for u in range(9)}
    path = write(tmp_path, users)
    changes = {"carry_state": True, "train_batch_size": 40, "num_layers": 2}
    if model_name == "Hydra":
        changes["repeat_bias"] = "distance"
    config, (train, valid, test) = prepare(path, "autoregressive", model_name, **changes)
    torch.manual_seed(0)
    model = config.model_class(config, train._dataset)
    bias_on_repeats(model)
    loss = WindowLoss(model, carry_state=True)
    total = 0.0
    for batch in train:
        total += float(loss(batch)) * int((batch["item_id"] > 0).sum())
    assert not loss.carried  # every state was handed on

    rows = train._dataset[list(range(len(train._dataset)))]
    assert rows["item_id_list"].shape[1] == max(map(len, users.values())) - 3
    want = float(model.calculate_loss(rows)) * len(rows)
    assert total == pytest.approx(want, rel=1e-5)
    for loader, left_out in ((valid, 2), (test, 1)):
        longest = max(int(rows["item_length"].max()) for rows, *_ in loader)
        assert longest == max(map(len, users.values())) - left_out


def test_a_carried_state_stops_the_gradient(tmp_path):
    users = {"u": [(f"i{n}", n) for n in range(20)]}
    changes = {"carry_state": True, "train_batch_size": 8, "num_layers": 1}
    config, (train, *_) = prepare(write(tmp_path, users), "autoregressive", "Hydra", **changes)
    model = config.model_class(config, train._dataset)
    loss = WindowLoss(model, carry_state=True)
    for batch in train:
        model.zero_grad()
        loss(batch).backward()  # the second time through a state would raise
        assert all(not part.requires_grad for parts in loss.carried.values() for part in parts)


def test_runs_carrying_the_state(run_small):
    result = run_small("Hydra", carry_state=True, MAX_ITEM_LIST_LENGTH=4, epochs=2)
    from recbole_hydra import recommend

    history = [f"i{n}" for n in range(1, 9)]
    long = recommend(result["best_checkpoint"], history, k=3)
    assert long != recommend(result["best_checkpoint"], history[-4:], k=3)


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_auto_takes_every_position_for_causal_models(model):
    config = Config(model, "tiny", config_dict=small(model))
    assert config["training_mode"] == "autoregressive"
    assert sum("training_mode: autoregressive" in note for note in config.notes) == 1


@pytest.mark.parametrize("model", ["Caser", "BPR", "FM"])
def test_auto_leaves_other_models_to_recbole(model):
    config = Config(model, "tiny", config_dict=small(model))
    assert config["training_mode"] == "augmentation"
    (note,) = [note for note in config.notes if "training_mode" in note]
    assert note.startswith(f"training_mode: RecBole's own training, since {model} is not")


def test_a_model_with_a_loss_of_its_own_is_left_to_recbole():
    from recbole_hydra import Hydra

    class Weighted(Hydra):
        def calculate_loss(self, interaction):
            return 2 * super().calculate_loss(interaction)

    class Wider(Hydra):
        pass

    settings = small("Hydra")
    defaults = Config("Hydra", "tiny", config_dict=settings).final_config_dict
    settings = {**settings, "loss_type": "CE", "train_neg_sample_args": None}
    assert Config(Wider, "tiny", config_dict=settings)["training_mode"] == "autoregressive"
    assert Config(Weighted, "tiny", config_dict=settings)["training_mode"] == "augmentation"
    assert defaults["training_mode"] == "autoregressive"


@pytest.mark.parametrize(
    "model, changes, message",
    [
        ("Hydra", {"training_mode": "fast"}, "training_mode must be one of auto, autoregressive"),
        ("Caser", {"training_mode": "autoregressive"}, "autoregressive is for Hydra.*not for Cas"),
        ("SASRec", {"carry_state": True}, "carry_state: SASRec has no state to carry"),
        ("Hydra", {"carry_state": "yes"}, "carry_state must be True or False, got 'yes'"),
        (
            "Hydra",
            {"carry_state": True, "training_mode": "augmentation"},
            "carry_state needs training_mode autoregressive, got augmentation",
        ),
        ("Hydra", {"carry_state": True, "window_overlap": 3}, "do not overlap; remove one"),
        ("Hydra", {"window_overlap": 13}, r"window_overlap must be an integer in 0 .. MAX.* .12."),
        ("Hydra", {"window_overlap": -1}, "window_overlap must be"),
        ("Hydra", {"window_overlap": 2.5}, "window_overlap must be"),
    ],
)
def test_settings_that_do_not_fit(model, changes, message):
    with pytest.raises(ConfigError, match=message):
        Config(model, "tiny", config_dict=small(model, **changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"transform": "crop_itemseq"}, "transform: crop_itemseq works on RecBole's prefixes"),
        (
            {
                "loss_type": "BPR",
                "train_neg_sample_args": {
                    "distribution": "uniform",
                    "sample_num": 1,
                    "dynamic": True,
                    "candidate_num": 2,
                },
            },
            "dynamic sampling scores RecBole's prefixes",
        ),
        ({"single_spec": False}, "nproc, world_size: runs of several processes"),
        ({"benchmark_filename": ["a", "b", "c"]}, "benchmark_filename: .* ready-made rows"),
        ({"dataloaders_save_path": "x"}, "dataloaders_save_path: .* builds its loaders anew"),
    ],
)
def test_what_windows_cannot_express_is_refused(changes, message):
    config = Config("Hydra", "tiny", config_dict=small("Hydra"))
    dataset = create_dataset(config)
    if "loss_type" in changes:
        config = Config("Hydra", "tiny", config_dict=small("Hydra", **changes))
    else:
        for key, value in changes.items():
            config[key] = value
    with pytest.raises(ConfigError, match=message):
        split_dataset(config, dataset)


def test_a_split_that_leaves_nothing_to_train_on(tmp_path):
    users = {"a": [("i1", 1), ("i2", 2)], "b": [("i3", 1), ("i2", 2)]}
    changes = {"eval_args": {"split": {"TS": [0.01, 0.5, 0.5]}}}
    with pytest.raises(DatasetError, match="leaves no interaction to train on"):
        prepare(write(tmp_path, users), "autoregressive", **changes)


def test_augmentation_is_recboles_own(run_small):
    from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader

    config = Config("Hydra", "tiny", config_dict=small("Hydra", training_mode="augmentation"))
    train, valid, test = split_dataset(config, create_dataset(config))
    assert type(train) is TrainDataLoader
    assert type(valid) is type(test) is FullSortEvalDataLoader
    assert POSITION not in train._dataset.inter_feat


def test_the_log_says_what_is_trained_on(elsewhere):
    run_recbole_hydra("GRU4Rec", "tiny", config_dict=small("GRU4Rec", epochs=1), saved=False)
    (log,) = (elsewhere / "log").rglob("*.log")
    text = log.read_text()
    assert text.count("training_mode: autoregressive, every position of whole histories") == 1
    assert "training_mode autoregressive:" in text and "windows of" in text
