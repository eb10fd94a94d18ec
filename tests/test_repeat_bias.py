"""Scores of items that the user has had already."""

import pytest
import torch
from conftest import small

from recbole_hydra import Config, load_model, recommend, run_recbole_hydra
from recbole_hydra.data import create_dataset, split_dataset
from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import RepeatBias
from recbole_hydra.model.sequential_recommender import base
from recbole_hydra.window_loss import WindowLoss


def random_bias(form):
    bias = RepeatBias(form)
    torch.nn.init.normal_(bias.weight)
    return bias


def written_out(bias, items):
    """``{item: what is added to its score}`` after a list of items."""
    added = {}
    for steps, item in enumerate(reversed(items), start=1):
        kind = 0 if len(bias.weight) == 1 else min(steps.bit_length() - 1, 11)
        if item > 0 and item not in added:
            added[item] = 20.0 * float(bias.weight[kind])
    return added


@pytest.mark.parametrize("form", ["shared", "distance"])
@pytest.mark.parametrize("n_items, length", [(4, 9), (30, 9), (50, 5000)])
def test_is_what_it_says(form, n_items, length):
    bias = random_bias(form)
    item_seq = torch.randint(1, n_items, (3, length))
    item_seq[1, length - 4 :] = 0  # padded on the right
    item_seq[2, :2] = 0  # on the left, as what precedes a window
    last = torch.tensor([0, 1, length - 1, length, 2 * length - 5, 2 * length + 3, 3 * length - 1])
    offsets = bias(item_seq, last)
    got = [{} for _ in last]
    for row, item, kind in zip(*(x.tolist() for x in offsets[:3]), strict=True):
        assert item not in got[row]
        got[row][item] = float(offsets.values[kind])
    flat = item_seq.flatten().tolist()
    for row, position in enumerate(last.tolist()):
        begin = position // length * length
        assert got[row] == pytest.approx(written_out(bias, flat[begin : position + 1]))


def model_and_data(**changes):
    config = Config("Hydra", "tiny", config_dict=small("Hydra", dropout_prob=0.0, **changes))
    train, valid, _ = split_dataset(config, create_dataset(config))
    torch.manual_seed(0)
    return config.model_class(config, train._dataset), train, valid


def test_scores_are_those_without_it_and_the_bias():
    model, _, valid = model_and_data(repeat_bias="distance")
    model.eval()
    rows = next(iter(valid))[0]
    plain = model.full_sort_predict(rows)
    torch.nn.init.normal_(model.repeat_bias.weight)
    got = model.full_sort_predict(rows)
    for row, (items, length) in enumerate(
        zip(rows["item_id_list"].tolist(), rows["item_length"].tolist(), strict=True)
    ):
        for item, value in written_out(model.repeat_bias, items[:length]).items():
            plain[row, item] += value
    torch.testing.assert_close(got, plain)
    rows["item_id"] = rows["item_id_list"][:, 0]
    want = got.gather(1, rows["item_id"][:, None]).squeeze(1)
    torch.testing.assert_close(model.predict(rows), want)


@pytest.mark.parametrize("loss_type", ["CE", "BPR", "SampledCE", "gBCE"])
def test_the_loss_is_that_of_the_scores(loss_type, monkeypatch):
    """Against all scores of the batch, held at once."""
    model, train, _ = model_and_data(loss_type=loss_type, repeat_bias="distance", num_negatives=9)
    torch.nn.init.normal_(model.repeat_bias.weight, std=0.1)
    batch = next(iter(train))
    targets = batch["item_id"].flatten()
    counted = targets.nonzero().squeeze(1)
    targets, rows = targets[counted], torch.arange(len(counted))
    scores = model.encode(batch["item_id_list"], keep=counted) @ model.item_table.T
    scores = model.repeat_bias(batch["item_id_list"], counted).added_to(scores)
    positive = scores[rows, targets]
    drawn, expected = torch.tensor([1, 5, 7, 5]), torch.tensor([0.2, 0.5, 0.1, 0.5]).log()
    monkeypatch.setattr(type(model), "_drawn_negatives", lambda *_: [(drawn, expected)])
    negative = scores[:, drawn]
    same = drawn == targets[:, None]
    if loss_type == "CE":
        want = torch.nn.functional.cross_entropy(scores, targets)
    elif loss_type == "BPR":
        items = batch["neg_item_id"].flatten(0, 1)[counted]
        want = -torch.log(1e-10 + torch.sigmoid(positive[:, None] - scores.gather(1, items))).mean()
    elif loss_type == "SampledCE":
        negative = (negative - expected).masked_fill(same, -torch.inf)
        want = (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
    else:
        alpha = 4 / (model.n_items - 2)
        beta = alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha)
        others = torch.log(1 - torch.sigmoid(negative)).masked_fill(same, 0.0).sum(1)
        want = -(beta * torch.log(torch.sigmoid(positive)) + others).mean() / 5
    torch.testing.assert_close(WindowLoss(model)(batch), want)
    monkeypatch.setattr(base, "MOST_PAIRS", 5)  # many parts
    torch.testing.assert_close(WindowLoss(model)(batch), want)


def test_learns_whether_items_come_again(make_dataset):
    """Of users who never have an item twice, and of users who have the same three all the time."""
    generator = torch.Generator().manual_seed(0)
    once, again = [], []
    for user in range(60):
        walk = torch.randperm(40, generator=generator)[:12].tolist()
        once += [(f"u{user}", f"i{item}", time) for time, item in enumerate(walk)]
        again += [(f"u{user}", f"i{walk[time % 3]}", time) for time in range(12)]
    biases = {}
    for name, rows in (("once", once), ("again", again)):
        changes = {
            "data_path": make_dataset(name, rows),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "epochs": 30,
            "stopping_step": 30,
        }
        result = run_recbole_hydra("Hydra", name, config_dict=small("Hydra", **changes))
        model = load_model(result["best_checkpoint"])
        biases[name] = float(model.repeat_bias.weight.detach())
        best = {item for item, _ in recommend(model, ["i1", "i2", "i3"], k=3)}
        repeated = len(best & {"i1", "i2", "i3"})
        assert repeated >= 2 if name == "again" else repeated == 0
    assert biases["once"] < -0.05 and biases["again"] > 0.05


def test_another_form():
    with pytest.raises(ConfigError, match="repeat_bias must be one of none, shared, distance"):
        model_and_data(repeat_bias="always")
