import numpy as np
import pytest
import torch
from conftest import small
from recbole.data.interaction import Interaction

import recbole_hydra
from recbole_hydra.data import prepare_data
from recbole_hydra.errors import ConfigError
from recbole_hydra.settings.config import Config
from recbole_hydra.settings.options.item_initialization import (
    SMOOTHING,
    WINDOW,
    cooccurrence_counts,
    initialize_items,
    item_vectors,
)


def train_split(**changes):
    config = Config("Hydra", "tiny", config_dict=small("Hydra", **changes))
    return prepare_data(config)


def naive_counts(histories, n_items):
    """Of histories without the last two items, which are left out."""
    counts = np.zeros((n_items, n_items))
    items, start = histories["items"].numpy(), histories["start"].numpy()
    for first, end in zip(start[:-1], start[1:], strict=True):
        # RecBole leaves one item out of three, two out of four and more, none out of fewer.
        left_out = {0: 0, 1: 0, 2: 0, 3: 1}.get(end - first, 2)
        history = items[first : end - left_out]
        for t, item in enumerate(history):
            for distance in range(1, min(t, WINDOW) + 1):
                counts[item, history[t - distance]] += 1 / distance
                counts[history[t - distance], item] += 1 / distance
    return counts


@pytest.mark.parametrize("mode", ["autoregressive", "augmentation"])
def test_counts_are_those_of_the_training_histories(mode):
    data = train_split(training_mode=mode)
    counts = cooccurrence_counts(data.splits[0])
    expected = naive_counts(data.histories, data.dataset.item_num)
    np.testing.assert_allclose(counts.toarray(), expected)
    assert expected.sum() > 0


def test_nothing_is_read_of_validation_and_test():
    data = train_split()
    train = cooccurrence_counts(data.splits[0]).toarray()
    for held_out in data.splits[1:]:
        assert len(held_out) > 0
        assert (cooccurrence_counts(held_out).toarray() != train).any()
    items, start = data.histories["items"], data.histories["start"]
    last = start[1:][start.diff() >= 3] - 1
    # Other held-out items, the same counts.
    changed = train_split()
    timeline = changed.splits[0].timeline["item_id"]
    assert torch.equal(timeline, items.long())
    timeline[last] = 1
    np.testing.assert_array_equal(cooccurrence_counts(changed.splits[0]).toarray(), train)


@pytest.mark.parametrize("n_items", [40, 700])  # decomposed whole, and by its leading part
def test_vectors_are_the_leading_part_of_positive_mutual_information(n_items):
    from scipy.sparse import csr_array

    generator = np.random.default_rng(0)
    groups = np.arange(n_items) % 8
    near = generator.random((n_items, n_items)) < np.where(groups[:, None] == groups, 0.5, 0.02)
    near = np.triu(near, 1)
    counts = (near + near.T).astype(float)
    vectors = item_vectors(csr_array(counts), width=8)
    assert vectors.shape == (n_items, 8)
    item = counts.sum(1)
    other = item**SMOOTHING / (item**SMOOTHING).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(counts / (item[:, None] * other))
    left, values, _ = np.linalg.svd(np.maximum(np.nan_to_num(information), 0))
    gram = vectors @ vectors.T
    np.testing.assert_allclose(gram, (left[:, :8] * values[:8]) @ left[:, :8].T, atol=1e-6)
    same = groups[:, None] == groups
    assert gram[same].mean() > 5 * abs(gram[~same].mean())


class Rows:
    """A dataset of a few of RecBole's rows."""

    iid_field, item_list_field, item_list_length_field = "item", "items", "length"

    def __init__(self, histories, targets, item_num):
        longest = max(map(len, histories))
        self.item_num = item_num
        self.inter_feat = Interaction(
            {
                "items": torch.tensor([h + [0] * (longest - len(h)) for h in histories]),
                "length": torch.tensor([len(h) for h in histories]),
                "item": torch.tensor(targets),
            }
        )


def test_rows_keep_their_spread_and_items_without_pairs_their_rows():
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(9, 16)
    torch.nn.init.normal_(embedding.weight, std=0.02)
    before = embedding.weight.detach().clone()
    rows = Rows([[1], [1, 2], [4], [4, 5]], [2, 3, 5, 6], item_num=9)
    assert initialize_items(embedding, rows) == 6
    after = embedding.weight.detach()
    again = torch.nn.Embedding(9, 16)
    initialize_items(again, rows, spread=0.5)
    assert float(again.weight[1:7].square().mean()) == pytest.approx(0.25)
    kept = [0, 7, 8]
    assert torch.equal(after[kept], before[kept])
    torch.testing.assert_close(after[1:7].norm(), before[1:7].norm())
    gram = after @ after.T
    assert gram[1, 3] > 0.1 * gram[1, 1] and abs(gram[1, 5]) < 1e-5 * gram[1, 1]
    # As many dimensions as the vectors have room for, none of them special.
    assert (after[1:7].abs() > 1e-5).all()


def test_without_pairs_nothing_changes():
    embedding = torch.nn.Embedding(5, 4)
    before = embedding.weight.detach().clone()
    rows = Rows([[1]], [2], item_num=5)
    rows.inter_feat["length"][:] = 0
    assert initialize_items(embedding, rows) == 0
    # And where nothing is near anything but itself, which is no more than chance.
    assert initialize_items(embedding, Rows([[1]], [1], item_num=5)) == 0
    assert torch.equal(embedding.weight, before)


@pytest.mark.parametrize("model", ["Hydra", "Mamba4Rec", "SASRec", "GRU4Rec"])
def test_every_causal_model_can_start_from_them(model, caplog):
    from recbole_hydra.training.run import train

    runs = {}
    for way in ("normal", "cooccurrence"):
        settings = small(model, item_initialization=way, epochs=1, learning_rate=1e-9)
        run = train(model, "tiny", config_dict=settings, saved=False)
        runs[way] = run.trainer.model.item_embedding.weight.detach()
        counts = cooccurrence_counts(run.data.splits[0]).toarray()
    near = torch.tensor(counts > counts[counts > 0].mean())

    def alikeness(table):
        unit = torch.nn.functional.normalize(table.double(), dim=1)
        return (unit @ unit.T)[near].mean()

    assert alikeness(runs["cooccurrence"]) > 0.1 + alikeness(runs["normal"])


def test_seeds_turn_them_differently(run_small):
    def table(seed):
        from recbole_hydra.training.run import train

        settings = small("SASRec", item_initialization="cooccurrence", epochs=1, seed=seed)
        settings["learning_rate"] = 1e-9
        run = train("SASRec", "tiny", config_dict=settings, saved=False)
        return run.trainer.model.item_embedding.weight.detach()

    one, again, other = table(1), table(1), table(2)
    torch.testing.assert_close(one, again)
    assert not torch.allclose(one, other, atol=1e-3)


def test_bad_input_is_one_line():
    def config(model, **changes):
        return Config(model, "tiny", config_dict=small(model, **changes))

    with pytest.raises(ConfigError, match="item_initialization must be one of normal, cooccurr"):
        config("Hydra", item_initialization="svd")
    with pytest.raises(ConfigError, match="cooccurrence_std must be a positive number, .*got 0"):
        config("Hydra", cooccurrence_std=0)
    with pytest.raises(ConfigError, match="not for BERT4Rec; use normal"):
        config("BERT4Rec", item_initialization="cooccurrence")
    with pytest.raises(ConfigError, match="cooccurrence is for item_encoder id; .*; use normal"):
        config("Hydra", item_initialization="cooccurrence", item_encoder="text", item_llm="llm")
    texts = config("Hydra", item_encoder="text", item_llm="llm")
    assert texts["item_initialization"] == "normal"
    assert any(note.startswith("item_initialization: normal") for note in texts.notes)
    assert config("BERT4Rec")["item_initialization"] == "normal"


def test_the_command_line_takes_it(run_small):
    result = run_small("Hydra", item_initialization="cooccurrence", epochs=1)
    assert result["epochs_run"] == 1
    assert recbole_hydra.load_model(result["best_checkpoint"]) is not None
