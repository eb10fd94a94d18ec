"""The linear memory: its map against closed forms written out, its part in the scores, and what it
takes to have it in a run. Streams of it are in test_recommender, exports in test_export."""

import numpy as np
import pytest
import torch
from conftest import DATASETS, small
from recbole.config import Config as RecBoleConfig
from recbole.data.dataset import SequentialDataset
from scipy.sparse import csr_array

import recbole_hydra
from recbole_hydra import checkpoint, load_model, recommend, run_recbole_hydra
from recbole_hydra.data import create_dataset, item_map, make_loaders, prepare_data
from recbole_hydra.data.item_map import fit_item_map, moments, training_histories
from recbole_hydra.errors import CheckpointError, ConfigError
from recbole_hydra.layers import ItemMemory
from recbole_hydra.model import LinearMap
from recbole_hydra.settings.config import Config
from recbole_hydra.settings.options import item_memory
from recbole_hydra.settings.options.item_memory import choose_weight
from recbole_hydra.training import trainer

HISTORIES = [[1, 2, 3, 2], [3, 1], [5], [4, 4, 1, 2, 6, 3]]
N_ITEMS = 8


def joined(histories):
    return np.concatenate(histories), np.r_[0, np.cumsum([len(each) for each in histories])]


def dense_map(histories, n_items, decay, ridge):
    """B as the docstring of data/item_map has it, from dense rows."""
    X, Y = [], []
    for history in histories:
        for t, item in enumerate(history):
            for is_other in (lambda k, t=t: k < t, lambda k, t=t: k != t):
                x = np.zeros(n_items)
                for k, other in enumerate(history):
                    if is_other(k):
                        x[other] += decay ** (abs(t - k) - 1)
                X.append(x)
                Y.append(np.eye(n_items)[item])
    X, Y = np.array(X), np.array(Y)
    return np.linalg.solve(X.T @ X + ridge * np.eye(n_items), X.T @ Y)


def random_histories(n_items, number, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, n_items, rng.integers(1, 9)).tolist() for _ in range(number)]


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(item_map, "POSITIONS_AT_ONCE", 5)
    monkeypatch.setattr(item_map, "ROWS_AT_ONCE", 3)


def test_the_map_is_the_ridge_regression(at_once):
    expected = dense_map(HISTORIES, N_ITEMS, 0.7, 2.0)
    found = fit_item_map(*joined(HISTORIES), N_ITEMS, 0.7, 2.0, N_ITEMS, "exact")
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-6)
    assert found.dtype == np.float32 and not found.toarray()[0].any()


def test_rows_keep_their_largest_entries(at_once):
    expected = dense_map(HISTORIES, N_ITEMS, 0.7, 2.0)
    for solver in ("exact", "neighbours"):
        whole = fit_item_map(*joined(HISTORIES), N_ITEMS, 0.7, 2.0, N_ITEMS, solver).toarray()
        found = fit_item_map(*joined(HISTORIES), N_ITEMS, 0.7, 2.0, 2, solver).toarray()
        for row, full in zip(found, whole, strict=True):
            kept = np.sort(np.abs(row[row != 0]))[::-1]
            np.testing.assert_allclose(kept, np.sort(np.abs(full))[::-1][: len(kept)], rtol=1e-6)
            np.testing.assert_allclose(row[row != 0], full[row != 0], rtol=1e-6)
            assert len(kept) == min(2, np.count_nonzero(full))
    assert np.count_nonzero(expected) > np.count_nonzero(found)


def test_neighbours_are_a_regression_on_those_near(monkeypatch):
    monkeypatch.setattr(item_map, "NEIGHBOURS", 3)
    histories = random_histories(12, 30)
    gram, cross = (each.toarray() for each in moments(*joined(histories), 12, 0.8))
    found = fit_item_map(*joined(histories), 12, 0.8, 4.0, 12, "neighbours").toarray()
    for target in range(1, 12):
        near = np.flatnonzero(found[:, target])
        assert len(near) == 3
        assert cross[near, target].min() >= np.sort(cross[:, target])[-3]
        own = gram[np.ix_(near, near)] + 4.0 * np.eye(3)
        expected = np.linalg.solve(own, cross[near, target])
        np.testing.assert_allclose(found[near, target], expected, rtol=1e-5)


def test_auto_is_exact_of_few_items(monkeypatch):
    monkeypatch.setattr(item_map, "NEIGHBOURS", 3)
    histories = random_histories(12, 30)
    of = {s: fit_item_map(*joined(histories), 12, 0.8, 4.0, 12, s) for s in item_map.SOLVERS}
    assert abs(of["auto"] - of["exact"]).max() == 0 != abs(of["auto"] - of["neighbours"]).max()
    monkeypatch.setattr(item_map, "AUTO_EXACT", 5)
    auto = fit_item_map(*joined(histories), 12, 0.8, 4.0, 12, "auto")
    assert abs(auto - of["neighbours"]).max() == 0


def test_of_many_positions_a_sample_is_read(monkeypatch):
    histories = random_histories(6, 3_000)
    whole = moments(*joined(histories), 6, 0.8)
    monkeypatch.setattr(item_map, "MOST_POSITIONS", 6_000)
    for all_of_it, sample in zip(whole, moments(*joined(histories), 6, 0.8), strict=True):
        np.testing.assert_allclose(sample.toarray(), all_of_it.toarray(), rtol=0.1)
        assert abs(sample - all_of_it).max() > 0


@pytest.mark.parametrize("mode", ["targets", "recboles rows"])
def test_training_histories_end_before_what_is_evaluated(mode):
    config = Config("Hydra", "tiny", config_dict=small("Hydra", MAX_ITEM_LIST_LENGTH=6))
    dataset = create_dataset(config)
    whole = {}
    frame = dataset.inter_feat.sort_values(["user_id", "timestamp"], kind="stable")
    for user, rows in frame.groupby("user_id"):
        whole[user] = rows["item_id"].tolist()
    if mode == "recboles rows":
        dataset = SequentialDataset(config)
    train = dataset.build()[0]
    items, begins = training_histories(train)
    found = [items[a:b].tolist() for a, b in zip(begins, begins[1:], strict=False)]
    # RecBole leaves one target of every user to train on.
    expected = [each[: max(2, len(each) - 2)] for each in whole.values() if len(each) > 1]
    assert sorted(found) == sorted(expected)


def memory_of(n_items=9, decay=0.6, seed=0, weight=2.0, scale=0.1):
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((n_items, n_items)) * (rng.random((n_items, n_items)) < 0.5)
    dense[0] = 0
    memory = ItemMemory(n_items, decay)
    memory.set_map(csr_array(dense))
    memory.weight.fill_(weight)
    memory.scale.fill_(scale)
    return memory, dense


def test_what_is_remembered_is_the_recursion():
    memory, dense = memory_of()
    histories = [[3, 1, 1, 7], [2], [8, 4, 4, 4, 5, 6, 1]]
    item_seq = torch.zeros(3, 7, dtype=torch.long)
    for row, history in enumerate(histories):
        item_seq[row, : len(history)] = torch.tensor(history)
    last = torch.tensor([1, 3, 7, 20, 14])
    rows, items, amounts = memory.recall(item_seq, last)
    found = torch.zeros(5, 9).index_put((rows, items), amounts).numpy()
    for place, where in enumerate(last.tolist()):
        m = np.zeros(9)
        for item in item_seq[where // 7, : where % 7 + 1].tolist():
            m = 0.6 * m + dense[item]
        np.testing.assert_allclose(found[place], m, atol=1e-5)


def test_scores_get_the_same_with_and_without_torch():
    memory, dense = memory_of()
    histories = [np.array(each) for each in ([3, 1, 1, 7], [2], [8, 4, 4, 5])]
    item_seq = torch.zeros(3, 4, dtype=torch.long)
    for row, history in enumerate(histories):
        item_seq[row, : len(history)] = torch.from_numpy(history)
    last = torch.tensor([len(each) - 1 + 4 * row for row, each in enumerate(histories)])
    offsets = memory(item_seq, last).added_to(torch.zeros(3, 9)).numpy()
    for row, (items, amounts) in enumerate(memory.after_each(histories)):
        alone = np.zeros(9)
        alone[items] = amounts
        np.testing.assert_allclose(alone, offsets[row], rtol=1e-5)
        m = sum(0.6**k * dense[item] for k, item in enumerate(reversed(histories[row])))
        expected = 2.0 * np.log1p(np.maximum(m, 0) / 0.1)
        np.testing.assert_allclose(alone, expected, rtol=1e-5)
        assert (np.diff(items) > 0).all() and (amounts > 0).all()


def test_long_ago_is_forgotten():
    memory, _ = memory_of(decay=0.5)
    assert memory.horizon == 20  # 0.5^20 < 1e-6 < 0.5^19
    recent = np.array([1, 2, 3, 4, 5] * 4)
    for older in ([], [7] * 30, [8, 6] * 9):
        ((items, amounts),) = memory.after_each([np.r_[np.array(older, np.int64), recent]])
        ((same, expected),) = memory.after_each([recent])
        np.testing.assert_array_equal(items, same)
        np.testing.assert_allclose(amounts, expected, rtol=1e-6)


def test_new_items_have_rows_of_nothing():
    memory, dense = memory_of()
    before = memory.after_each([np.array([3, 8])])[0]
    memory.add_rows(5, 2)
    items, amounts = memory.after_each([np.array([3, 5, 6, 10])])[0]
    assert len(memory.starts) == 12 and not {5, 6} & set(items.tolist())
    older = dense[3] * 0.6**3 + dense[8]
    expected = np.insert(2.0 * np.log1p(np.maximum(older, 0) / 0.1), 5, [0, 0])
    np.testing.assert_allclose(amounts, expected[items], rtol=1e-5)
    assert len(before[0]) > 0


def by_ranks(model, batches, weight, scale):
    """The sum over targets of 1 / log2(1 + rank), to place 10, in both rankings, targets that the
    history holds in the first alone; in full."""
    total = 0.0
    model.item_memory.weight.fill_(weight)
    model.item_memory.scale.fill_(scale)
    for interaction, _, row, target in batches:
        scores = model.full_sort_predict(interaction).view(len(interaction), -1)
        scores[:, 0] = -torch.inf
        for user, item in zip(row.tolist(), target.tolist(), strict=True):
            own, others = scores[user, item], scores[user].clone()
            others[item] = -torch.inf
            history = interaction[model.ITEM_SEQ][user]
            for _ in range(1 if item in history else 2):
                rank = int((others > own).sum())
                total += 1 / np.log2(rank + 2) if rank < 10 else 0.0
                others[history] = -torch.inf
    return total


@pytest.mark.parametrize("model", ["Hydra", "LinearMap"])
def test_the_weight_is_the_best_on_validation(model, train_once):
    path = train_once(model, item_memory="linear")
    config, model, _, _, valid, _ = recbole_hydra.load_data_and_model(path)
    model.eval()
    pairs = [(w, s) for s in (0.01, 0.1) for w in (0.0, 1.0, 8.0)]
    with torch.no_grad():
        found = sum(item_memory._gains(model, *(batch[i] for i in (0, 2, 3)), pairs)
                    for batch in valid)  # fmt: skip
        expected = [by_ranks(model, valid, *pair) for pair in pairs]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert max(expected) > min(expected)
    if model.__class__.__name__ == "Hydra":
        choose_weight(model, valid, config)
        grid = [(w, s) for s in item_memory.SCALES for w in item_memory.WEIGHTS]
        best = max(by_ranks(model, valid, *pair) for pair in grid)
        choose_weight(model, valid, config)
        memory = model.item_memory
        found = by_ranks(model, valid, float(memory.weight), float(memory.scale))
        assert (1 - item_memory.NO_WORSE) * best <= found <= best + 1e-6
        stronger = [pair for pair in grid if pair[0] > float(memory.weight)]
        for pair in stronger:
            assert by_ranks(model, valid, *pair) < (1 - item_memory.NO_WORSE) * best


def test_of_many_targets_some_of_every_length_are_read(train_once, monkeypatch):
    path = train_once("Hydra", item_memory="linear")
    config, model, _, _, valid, _ = recbole_hydra.load_data_and_model(path)
    monkeypatch.setattr(item_memory, "MOST_TARGETS", 7)
    every = -(-len(valid._dataset) // 7)
    expected = [batch[0][model.ITEM_SEQ_LEN][::every].tolist() for batch in valid]
    targets = [batch[3][::every].tolist() for batch in valid]
    read = []

    def gains(model, interaction, row, target, pairs):
        assert row.tolist() == list(range(len(interaction)))
        read.append((interaction[model.ITEM_SEQ_LEN].tolist(), target.tolist()))
        return torch.zeros(len(pairs))

    monkeypatch.setattr(item_memory, "_gains", gains)
    choose_weight(model, valid, config)
    assert read == list(zip(expected, targets, strict=True))
    assert every > 1 and len({length for each in expected for length in each}) > 1


def test_a_run_has_it_and_keeps_it(train_once, run_small):
    path = train_once("Hydra", item_memory="linear")
    state = checkpoint.load_checkpoint(path)
    own = {k: v for k, v in state["state_dict"].items() if k.startswith("item_memory.")}
    assert {k.partition(".")[2] for k in own} == {
        "starts", "items", "values", "decay", "weight", "scale", "seconds"
    }  # fmt: skip
    assert len(own["item_memory.values"]) > 0
    result = run_small("Hydra", item_memory="linear", item_memory_weight=4, item_memory_scale=0.1)
    assert result["item_memory"]["entries"] > 0 and result["item_memory"]["seconds"] > 0
    model = load_model(result["best_checkpoint"])
    assert float(model.item_memory.weight) == 4 and not model.item_memory.weight.requires_grad
    plain = run_small("Hydra")
    assert "item_memory" not in plain and not any(
        key.startswith("item_memory") for key in load_model(plain["best_checkpoint"]).state_dict()
    )
    # Training is the same: it is beside the scores.
    other = load_model(plain["best_checkpoint"]).state_dict()
    longer = load_model(result["last_checkpoint"]).state_dict()
    last = load_model(plain["last_checkpoint"]).state_dict()
    assert all(torch.equal(last[key], longer[key]) for key in other)


def test_a_resumed_run_is_the_same(run_small):
    whole = run_small("Hydra", item_memory="linear", epochs=4)
    part = run_small("Hydra", item_memory="linear", epochs=2)
    resumed = run_recbole_hydra(resume=part["last_checkpoint"], config_dict={"epochs": 4})
    assert resumed["test_result"] == whole["test_result"]
    assert resumed["best_valid_result"] == whole["best_valid_result"]


@pytest.mark.parametrize(
    "changes",
    [
        {"item_memory_decay": 0.5},
        {"item_memory_ridge": 5},
        {"item_memory_entries": 2},
        {"item_memory_solver": "neighbours"},
        {"item_memory": "none"},
    ],
)
def test_a_resumed_run_keeps_its_map(changes, train_once):
    last = train_once("Hydra", item_memory="linear").replace(".best", ".last")
    (key,) = changes
    with pytest.raises(CheckpointError, match=f"{key} cannot change on resuming, from "):
        run_recbole_hydra(resume=last, config_dict={"epochs": 4, **changes})


def test_the_result_says_what_was_tested(run_small, monkeypatch):
    weights = iter((8.0, 0.0))  # without it, only popularity is left: the first epoch is best

    def choose(model, batches, config):
        model.item_memory.weight.fill_(next(weights))

    monkeypatch.setattr(trainer, "choose_weight", choose)
    result = run_small("LinearMap", epochs=2)
    assert load_model(result["best_checkpoint"]).item_memory.weight == 8
    assert load_model(result["last_checkpoint"]).item_memory.weight == 0
    assert result["item_memory"]["weight"] == 8


@pytest.mark.parametrize("evaluation", [{"mode": "uni10"}, {"mode": "labeled"}])
def test_the_weight_is_chosen_of_other_evaluations_alike(evaluation, make_dataset):
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{(u + t * t) % 11}", rng.integers(1, 6), 10 * t + u % 3)
            for u in range(30) for t in range(9)]  # fmt: skip
    columns = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    data_path = make_dataset("rated", rows, columns)
    split = {"split": {"RS": [0.5, 0.3, 0.2]}}
    given = small("Hydra", data_path=data_path, item_memory="linear", topk=[5])
    of = {"full": given | {"valid_metric": "NDCG@5", "eval_args": split}}
    of["other"] = of["full"] | {"eval_args": {**split, **evaluation}}
    if evaluation["mode"] == "labeled":
        of["other"] |= {"metrics": ["AUC"], "valid_metric": "AUC", "threshold": {"rating": 1}}
    model = run_recbole_hydra("Hydra", "rated", config_dict=of["full"])["best_checkpoint"]
    model, gains = load_model(model), []
    pairs = [(w, s) for s in (0.01, 0.1) for w in (0.0, 1.0, 8.0)]
    for settings in of.values():
        config = Config("Hydra", "rated", config_dict=settings)
        valid = make_loaders(config, prepare_data(config))[1]
        batches = [item_memory._targets(batch, config) for batch in valid]
        with torch.no_grad():
            gains.append(sum(item_memory._gains(model, *batch, pairs) for batch in batches))
        choose_weight(model, valid, config)
    np.testing.assert_allclose(*gains, rtol=1e-6)


@pytest.mark.parametrize("none", [{"eval_step": 0}, {"eval_args": {"split": {"LS": "test_only"}}}])
def test_without_validation_it_is_as_the_settings_say(none, run_small):
    message = "^item_memory_weight and item_memory_scale: ~ is chosen on validation, and this run "
    with pytest.raises(ConfigError, match=message + "has none; set them to a number, or validate$"):
        run_small("Hydra", item_memory="linear", **none)
    with pytest.raises(ConfigError, match="^item_memory_scale: ~ .* set it to a number"):
        run_small("LinearMap", **none)
    result = run_small("LinearMap", item_memory_scale=0.03, **none)
    assert result["item_memory"]["weight"] == 1 and result["test_result"]["ndcg@10"] > 0.5


def test_linear_map_recommends_what_comes_after(make_ring):
    data_path = make_ring("ring", items=24, users=200)
    result = run_recbole_hydra(
        "LinearMap", "ring",
        config_dict={"data_path": data_path, "show_progress": False},
    )  # fmt: skip
    assert result["epochs_run"] == 1 and result["test_result"]["hit@10"] > 0.95
    first = [recommend(result["best_checkpoint"], [f"i{i}", f"i{i + 1}"], k=1)[0][0]
             for i in range(20)]  # fmt: skip
    assert first == [f"i{i + 2}" for i in range(20)]


def test_what_it_adds_to_a_trained_model(make_ring):
    data_path = make_ring("ring", items=24, users=60)
    scores = {}
    for memory in ("none", "linear"):
        given = small("Hydra", data_path=data_path, epochs=1, item_memory=memory)
        scores[memory] = run_recbole_hydra("Hydra", "ring", config_dict=given)["best_valid_score"]
    assert scores["linear"] > scores["none"] + 0.1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"item_memory_decay": 1}, r"^item_memory_decay must be a number in \(0, 1\), got 1$"),
        ({"item_memory_decay": 0.0}, r"^item_memory_decay must be a number in \(0, 1\), got 0.0$"),
        ({"item_memory_ridge": 0}, "^item_memory_ridge must be a number from 1e-6 to 1e9, got 0$"),
        ({"item_memory_ridge": 1e-310}, "^item_memory_ridge must be a number from 1e-6 to 1e9"),
        ({"item_memory_entries": 0}, "^item_memory_entries must be a positive integer, got 0$"),
        ({"item_memory_solver": "exat"}, "^item_memory_solver must be one of auto, exact, neigh"),
        ({"item_memory": "liner"}, "^item_memory must be one of none, linear, got 'liner'"),
        ({"item_memory_weight": -1}, "^item_memory_weight must be a number from 0 to 1e6, or"),
        ({"item_memory_scale": 0}, "^item_memory_scale must be a number from 1e-6 to 1e6"),
        ({"item_memory_scale": 1e300}, "^item_memory_scale must be a number from 1e-6 to 1e6"),
    ],
)
def test_values_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        Config("Hydra", "tiny", config_dict={**small("Hydra"), **changes})


def test_models_that_cannot_have_it():
    config = Config("BERT4Rec", "tiny", config_dict=small("BERT4Rec", item_memory="linear"))
    assert config["item_memory"] == "none"
    assert "item_memory: none; linear is for causal models (Hydra, " in str(config.notes)
    given = small("LinearMap", repeat_bias="item")
    config = Config("LinearMap", "tiny", config_dict=given)
    assert config["repeat_bias"] == "shared" and "repeat_bias: shared; Lin" in str(config.notes)
    with pytest.raises(ConfigError, match="^item_memory: none leaves nothing of LinearMap; use l"):
        Config("LinearMap", "tiny", config_dict=small("LinearMap", item_memory="none"))


def test_a_catalogue_that_is_too_large_for_an_exact_map(monkeypatch):
    monkeypatch.setattr(item_map, "MOST_EXACT", 10)
    given = small("Hydra", item_memory="linear", item_memory_solver="exact")
    message = r"^item_memory_solver: exact holds n_items\^2 numbers, .* 10 items at most, got \d+; "
    with pytest.raises(ConfigError, match=message + "use auto or neighbours$"):
        run_recbole_hydra("Hydra", "tiny", config_dict=given, saved=False)


@pytest.mark.parametrize(
    "name, change, problem",
    [
        ("starts", lambda x: x[:-5], "it is of 55 items, not of 60"),
        ("starts", lambda x: x + 100, "its rows do not fit its numbers"),
        ("starts", lambda x: x.flip(0), "its rows do not fit its numbers"),
        ("values", lambda x: x[:10], "its rows do not fit its numbers"),
        ("values", lambda x: x[:, None], "its rows do not fit its numbers"),
        ("items", lambda x: x + 40, r"it has items outside 1 \.\. 60"),
        ("items", lambda x: x - 1, r"it has items outside 1 \.\. 60"),
        ("values", lambda x: x * torch.nan, "it has numbers that are not finite"),
        ("decay", lambda x: 2 * x, "decay is 1.6"),
        ("scale", lambda x: 0 * x, "scale is 0"),
    ],
)
def test_a_checkpoint_with_a_damaged_map(name, change, problem, train_once, tmp_path):
    state = checkpoint.load_checkpoint(train_once("Hydra", item_memory="linear"))
    key = f"item_memory.{name}"
    state["state_dict"][key] = change(state["state_dict"][key])
    path = tmp_path / "damaged.pth"
    checkpoint.save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match=f"the map of item_memory is damaged: {problem}; "):
        load_model(path)


def test_a_checkpoint_without_its_map(train_once, tmp_path):
    state = checkpoint.load_checkpoint(train_once("Hydra", item_memory="linear"))
    del state["state_dict"]["item_memory.values"]
    path = tmp_path / "without.pth"
    checkpoint.save_checkpoint(path, state)
    message = r"without.pth: .*the map of item_memory is missing \(item_memory.values\); .* anew"
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(path)
    assert "\n" not in str(error.value) and DATASETS.is_dir()


@pytest.mark.parametrize("model", [recbole_hydra.Hydra, LinearMap])
def test_recboles_own_runs_would_not_fit_it(model):
    layers = [recbole_hydra.default_config(model.__name__)]
    given = {**small("Hydra"), "item_memory": "linear", "load_col": None}
    config = RecBoleConfig(model=model, dataset="tiny", config_file_list=layers, config_dict=given)
    dataset = create_dataset(Config("Hydra", "tiny", config_dict=small("Hydra")))
    message = f"^{model.__name__}: an item_memory is fitted by run_recbole_hydra, and not by runs "
    with pytest.raises(ConfigError, match=message):
        model(config, dataset)
