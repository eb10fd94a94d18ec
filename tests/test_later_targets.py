import pytest
import torch
import torch.nn.functional as F
from conftest import small

from recbole_hydra.data import create_dataset, split_dataset
from recbole_hydra.errors import ConfigError
from recbole_hydra.model.losses import cross_entropy
from recbole_hydra.settings.config import Config
from recbole_hydra.settings.options.later_targets import later_target_loss, later_targets
from recbole_hydra.training.window_loss import WindowLoss


def soft_cross_entropy(states, table, soft):
    """Of targets that are distributions, (targets, n_items)."""
    return -(soft * F.log_softmax(states @ table.T, 1)).sum(1).mean()


def test_it_makes_the_cross_entropy_that_of_several_targets():
    torch.manual_seed(0)
    states = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1, 2, 3, 4, 8])
    later = torch.tensor([[5, 6], [2, 1], [7, 0], [0, 0], [0, 3]])
    weights = torch.tensor([0.5, 0.25], dtype=torch.float64)
    soft = torch.zeros(5, 9, dtype=torch.float64)
    for row in range(5):
        soft[row, targets[row]] = 1.0
        for item, weight in zip(later[row], weights, strict=True):
            if item > 0:
                soft[row, item] += weight
    soft /= soft.sum(1, keepdim=True)
    want = soft_cross_entropy(states, table, soft)
    got = cross_entropy(states, table, targets)
    got = got + later_targets(states, table, targets, later, weights)
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, (states, table)),
        torch.autograd.grad(want, (states, table)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def loaded(model, **changes):
    config = Config(model, "tiny", config_dict=small(model, **changes))
    train = split_dataset(config, create_dataset(config))[0]
    torch.manual_seed(0)
    return config.model_class(config, train._dataset).double().eval(), next(iter(train))


@pytest.mark.parametrize("model", ["Hydra", "Mamba4Rec", "SASRec", "GRU4Rec"])
def test_the_later_items_of_a_window_are_targets(model):
    model, batch = loaded(model, **({"history_as_one": False} if model == "Hydra" else {}))
    items, table = batch["item_id"], model.item_embedding.weight
    logits, soft = [], []
    for row in range(len(items)):
        length = int((batch["item_id_list"][row] > 0).sum())
        for t in range(length):
            if items[row, t] == 0:  # context, whose target another window has
                continue
            prefix = batch["item_id_list"][row : row + 1, : t + 1]
            logits.append(model.forward(prefix, torch.tensor([t + 1])) @ table.T)
            own = torch.zeros(model.n_items, dtype=torch.float64)
            for step, weight in enumerate((1.0, 0.5, 0.125)):
                if t + step < length:
                    own[items[row, t + step]] += weight
            soft.append(own / own.sum())
    logits, soft = torch.cat(logits), torch.stack(soft)
    want = -(soft * F.log_softmax(logits, 1)).sum(1).mean()
    got = WindowLoss(model, later_weights=[0.5, 0.125])(batch)
    torch.testing.assert_close(got, want)
    assert abs(got - WindowLoss(model)(batch)) > 1e-5


def test_more_steps_than_a_window_has_items():
    model, batch = loaded("Hydra")
    length = batch["item_id"].shape[1]
    some = WindowLoss(model, later_weights=[0.5] * (length - 1))(batch)
    more = WindowLoss(model, later_weights=[0.5] * (length + 3))(batch)
    torch.testing.assert_close(some, more)


def test_of_another_group_than_the_target_they_do_not_count():
    from recbole_hydra.model.losses import TargetGroup

    model, _ = loaded("Hydra")
    first, second = torch.arange(1, 6), torch.arange(6, model.n_items)
    groups = [TargetGroup(first, model.n_items), TargetGroup(second, model.n_items)]
    model.target_groups = torch.nn.ModuleList(groups)
    states = torch.randn(3, model.item_table.shape[1], dtype=torch.float64)
    targets, weights = torch.tensor([1, 2, 7]), torch.tensor([0.5, 0.5], dtype=torch.float64)
    got = later_target_loss(model, states, targets, torch.tensor([[3, 8], [8, 9], [9, 4]]), weights)
    own = torch.tensor([[3, 0], [0, 0], [9, 0]])
    torch.testing.assert_close(got, later_targets(states, model.item_table, targets, own, weights))


def test_runs_take_the_weights(run_small):
    results = [run_small("SASRec", later_targets=weights) for weights in ([], [0.5])]
    losses = [result["history"][0]["train_loss"] for result in results]
    assert losses[0] != losses[1]


def test_settings_that_do_not_fit():
    def config(model="Hydra", **changes):
        return Config(model, "tiny", config_dict=small(model, **changes))

    assert config(later_targets="0.5, 0.25")["later_targets"] == [0.5, 0.25]
    assert config(later_targets=0.5)["later_targets"] == [0.5]
    assert config(later_targets=None)["later_targets"] == []
    for wrong in ("much", -0.5, True):
        with pytest.raises(ConfigError, match="later_targets must be positive numbers, .*got"):
            config(later_targets=[wrong])
    for changes in ({"loss_type": "BPR"}, {"training_mode": "augmentation"}):
        with pytest.raises(ConfigError, match="later_targets are for .*, not for .*; remove them"):
            config(later_targets=[0.5], **changes)
        assert config(**changes)["later_targets"] == []
    with pytest.raises(ConfigError, match="not for augmentation and"):
        config("BERT4Rec", later_targets=[0.5])
    assert config("BERT4Rec")["later_targets"] == []
