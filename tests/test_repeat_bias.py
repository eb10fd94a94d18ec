"""Scores of items that the user has had already."""

import math

import pytest
import torch
from conftest import small

from recbole_hydra import Config, load_model, recommend, run_recbole_hydra
from recbole_hydra.data import create_dataset, split_dataset
from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import RepeatBias
from recbole_hydra.model import target_losses
from recbole_hydra.model.losses import TargetGroup, cross_entropy
from recbole_hydra.ops import ScoreOffsets
from recbole_hydra.training.window_loss import WindowLoss


def randomise(bias, std=1.0):
    for parameter in bias.parameters():
        torch.nn.init.normal_(parameter, std=std)


def written_out(bias, items):
    """``{item: what is added to its score}`` after a list of items."""
    added = {}
    for steps, item in enumerate(reversed(items), start=1):
        kind = 0 if len(bias.weight) == 1 else min(steps.bit_length() - 1, 11)
        if item > 0 and item not in added:
            own = 0.0 if bias.item_weight is None else float(bias.item_weight[item])
            added[item] = 20.0 * (float(bias.weight[kind]) + own)
    return added


@pytest.mark.parametrize("form", RepeatBias.FORMS)
@pytest.mark.parametrize("n_items, length", [(4, 9), (30, 9), (50, 5000)])
def test_is_what_it_says(form, n_items, length):
    bias = RepeatBias(form, n_items)
    randomise(bias)
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


@pytest.mark.parametrize("form", RepeatBias.FORMS)
def test_scores_are_those_without_it_and_the_bias(form):
    model, _, valid = model_and_data(repeat_bias=form)
    model.eval()
    rows = next(iter(valid))[0]
    plain = model.full_sort_predict(rows)
    randomise(model.repeat_bias)
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


def history_less(item_seq, counted, n_items):
    """What a history of h items that counts as one has less in each row, (targets, n_items)."""
    less = torch.zeros(len(counted), n_items)
    length = item_seq.shape[1]
    for row, position in enumerate(counted.tolist()):
        user, t = divmod(position, length)
        history = set(item_seq[user, : t + 1].tolist()) - {0}
        less[row, list(history)] = -math.log(max(1, len(history)))
    return less


@pytest.mark.parametrize("form", ["item", "distance"])
@pytest.mark.parametrize(
    "loss_type, history_as_one",
    [
        ("CE", False),
        ("CE", None),
        ("SampledCE", False),
        ("SampledCE", True),
        ("BPR", None),
        ("gBCE", False),
    ],
)
def test_is_learned_beside_the_scores(loss_type, history_as_one, form, monkeypatch):
    """Against all scores of the batch, held at once."""
    model, train, _ = model_and_data(
        loss_type=loss_type, repeat_bias=form, history_as_one=history_as_one, num_negatives=9
    )
    assert model.history_as_one == (history_as_one or loss_type == "CE" and history_as_one is None)
    randomise(model.repeat_bias, std=0.1)
    batch = next(iter(train))
    targets = batch["item_id"].flatten()
    counted = targets.nonzero().squeeze(1)
    targets, rows = targets[counted], torch.arange(len(counted))
    drawn, expected = torch.tensor([1, 5, 7, 5]), torch.tensor([0.2, 0.5, 0.1, 0.5]).log()
    monkeypatch.setattr(type(model), "_drawn_negatives", lambda *_: [(drawn, expected)])

    def loss_of(scores):
        positive, negative = scores[rows, targets], scores[:, drawn]
        same = drawn == targets[:, None]
        if loss_type == "CE":
            return torch.nn.functional.cross_entropy(scores, targets)
        if loss_type == "BPR":
            others = scores.gather(1, batch["neg_item_id"].flatten(0, 1)[counted])
            return -torch.log(1e-10 + torch.sigmoid(positive[:, None] - others)).mean()
        if loss_type == "SampledCE":
            negative = (negative - expected).masked_fill(same, -torch.inf)
            return (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
        alpha = 4 / (model.n_items - 2)
        beta = alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha)
        chance = math.log(model.n_items - 2)
        others = torch.log(1 - torch.sigmoid(negative - chance)).masked_fill(same, 0.0).sum(1)
        return -(beta * torch.log(torch.sigmoid(positive - chance)) + others).mean() / 5

    scores = model.encode(batch["item_id_list"], keep=counted) @ model.item_table.T
    less = torch.zeros_like(scores)
    if model.history_as_one:
        less = history_less(batch["item_id_list"], counted, model.n_items)
        assert float(less.min()) < -1.5
    want = loss_of(scores + less)
    want.backward()
    offsets = model.repeat_bias(batch["item_id_list"], counted)
    loss_of(offsets.added_to(scores.detach())).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = WindowLoss(model)(batch)
    torch.testing.assert_close(loss, want)
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("loss_type", ["CE", "SampledCE"])
def test_a_history_of_several_groups(loss_type, monkeypatch):
    """What a target is told apart from has only the items of its group, as one."""
    model, train, _ = model_and_data(loss_type=loss_type, num_negatives=4, history_as_one=True)
    randomise(model.repeat_bias, std=0.1)
    cut = model.n_items // 2
    groups = [torch.arange(1, cut), torch.arange(cut, model.n_items)]
    model.target_groups = torch.nn.ModuleList(TargetGroup(g, model.n_items) for g in groups)
    samples = [torch.tensor([1, 3, 1, cut - 1]), torch.tensor([cut, cut + 2, cut + 2, cut + 5])]
    monkeypatch.setattr(
        type(model), "_drawn_negatives", lambda *_: [(s, torch.zeros(4)) for s in samples]
    )
    batch = next(iter(train))
    targets = batch["item_id"].flatten()
    counted = targets.nonzero().squeeze(1)
    targets = targets[counted]

    def loss_of(scores):
        total = 0.0
        for group, sample in zip(groups, samples, strict=True):
            rows = torch.isin(targets, group).nonzero().squeeze(1)
            own, mine = scores[rows], targets[rows]
            if loss_type == "CE":
                others = own[:, group].logsumexp(1)
            else:
                negative = own[:, sample].masked_fill(sample == mine[:, None], -torch.inf)
                others = torch.cat([own.gather(1, mine[:, None]), negative], 1).logsumexp(1)
            total = total + (others - own.gather(1, mine[:, None]).squeeze(1)).sum()
        return total / len(targets)

    scores = model.encode(batch["item_id_list"], keep=counted) @ model.item_table.T
    less = sum(
        history_less(
            batch["item_id_list"] * torch.isin(batch["item_id_list"], group),
            counted,
            len(scores[0]),
        )
        for group in groups
    )
    want = loss_of(scores + less)
    offsets = model.repeat_bias(batch["item_id_list"], counted)
    parameters = list(model.repeat_bias.parameters())
    gradients = torch.autograd.grad(loss_of(offsets.added_to(scores.detach())), parameters)
    loss = WindowLoss(model)(batch)
    torch.testing.assert_close(loss, want)
    loss.backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def test_a_part_of_the_targets_is_enough(monkeypatch):
    model, train, _ = model_and_data()
    batch = next(iter(train))
    every = batch["item_id"].flatten().nonzero().squeeze(1)
    pairs = int((every % batch["item_id_list"].shape[1] + 1).sum())
    monkeypatch.setattr(target_losses, "MOST_PAIRS", pairs // 2 + 1)
    seen = []
    monkeypatch.setattr(
        type(model.repeat_bias),
        "forward",
        lambda self, item_seq, last, forward=RepeatBias.forward: (
            seen.append(last) or forward(self, item_seq, last)
        ),
    )
    WindowLoss(model)(batch).backward()
    assert torch.equal(seen[0], every[::2])
    assert float(model.repeat_bias.weight.grad.abs()) > 0


def test_a_history_with_all_of_the_probability():
    """Where rounding leaves nothing for the others, the loss stays a number."""
    states, table = torch.tensor([[30.0, 0.0]]), torch.tensor([[0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
    values = torch.tensor([-20.0], requires_grad=True)
    one, target = torch.ones(1, dtype=torch.long), torch.tensor([2])
    loss = cross_entropy(states, table, target, ScoreOffsets(one - 1, one, one - 1, values))
    assert loss.isfinite() and torch.autograd.grad(loss, values)[0].isfinite()


def train_on(name, rows, make_dataset):
    """A small Hydra, trained on rows (user, item, time), and its dataset's item ids."""
    changes = {
        "data_path": make_dataset(name, rows),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "epochs": 40,
        "stopping_step": 40,
        "learning_rate": 0.01,
    }
    result = run_recbole_hydra("Hydra", name, config_dict=small("Hydra", **changes))
    return load_model(result["best_checkpoint"])


def test_learns_whether_items_come_again(make_dataset):
    """Of users who never have an item twice, and of users who have the same three all the time."""
    generator = torch.Generator().manual_seed(0)
    once, again = [], []
    for user in range(60):
        walk = torch.randperm(40, generator=generator)[:12].tolist()
        history = [f"i{item}" for item in walk[:3]]  # in the end, the last user's
        once += [(f"u{user}", f"i{item}", time) for time, item in enumerate(walk)]
        again += [(f"u{user}", f"i{walk[time % 3]}", time) for time in range(12)]
    biases, repeated = {}, {}
    for name, rows in (("once", once), ("again", again)):
        model = train_on(name, rows, make_dataset)
        biases[name] = float(model.repeat_bias.weight.detach())
        best = {item for item, _ in recommend(model, history, k=3)}
        repeated[name] = len(best & set(history))
    assert biases["once"] < -0.01 and repeated["once"] == 0, (biases, repeated)
    assert biases["again"] > 0.05 and repeated["again"] > 0, (biases, repeated)


def test_learns_which_items_come_again(make_dataset):
    """Of users who have every ink twice in a row, and every printer once."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for user in range(80):
        walk = []
        for item in torch.randperm(40, generator=generator)[:8].tolist():
            walk += [f"ink{item}"] * 2 if item % 2 else [f"printer{item}"]
        rows += [(f"u{user}", item, time) for time, item in enumerate(walk)]
    model = train_on("ink", rows, make_dataset)
    own = model.repeat_bias.item_weight.detach()
    tokens = model.checkpoint["vocabulary"].field2id_token["item_id"]
    is_ink = torch.tensor([str(token).startswith("ink") for token in tokens])
    assert own[is_ink].mean() > own[1:][~is_ink[1:]].mean() + 0.02
    assert recommend(model, ["printer2", "ink3"], k=1)[0][0] == "ink3"
    assert recommend(model, ["ink3", "ink3", "printer2"], k=1)[0][0] != "printer2"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"history_as_one": "yes"}, "history_as_one must be True or False, .*got 'yes'"),
        (
            {"history_as_one": True, "repeat_bias": "none"},
            "history_as_one: True leaves it to the repeat bias .* but repeat_bias is none",
        ),
        (
            {"history_as_one": True, "loss_type": "gBCE", "num_negatives": 9},
            "history_as_one: True is for loss_type CE and SampledCE, .* not for gBCE",
        ),
    ],
)
def test_a_history_that_cannot_count_as_one(changes, message):
    with pytest.raises(ConfigError, match=message):
        model_and_data(**changes)


def test_another_form():
    with pytest.raises(ConfigError, match="repeat_bias must be one of item, shared, dist"):
        model_and_data(repeat_bias="always")
