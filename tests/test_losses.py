import math

import pytest
import torch
import torch.nn.functional as F
from conftest import small

from recbole_hydra import Config
from recbole_hydra.data import create_dataset, split_dataset
from recbole_hydra.errors import ConfigError
from recbole_hydra.model.losses import NegativeSampler, gbce, sampled_cross_entropy


def inputs(targets=6, width=4, n_items=9):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(targets, width, generator=generator, dtype=torch.float64)
    table = torch.randn(n_items, width, generator=generator, dtype=torch.float64)
    return states, table, torch.randint(1, n_items, (targets,), generator=generator)


def test_sampled_cross_entropy_by_hand():
    states, table, targets = inputs()
    negatives = torch.tensor([3, 3, 5, int(targets[0])])
    log_expected = torch.tensor([0.5, 0.5, -1.0, 0.25])
    for correction in (None, log_expected):
        want = []
        for state, target in zip(states, targets, strict=True):
            terms = [math.exp(float(state @ table[target]))]
            for k, item in enumerate(negatives):
                if item != target:
                    weight = 1.0 if correction is None else math.exp(-float(correction[k]))
                    terms.append(weight * math.exp(float(state @ table[item])))
            want.append(-math.log(terms[0] / sum(terms)))
        got = sampled_cross_entropy(states, table, targets, negatives, correction)
        assert float(got) == pytest.approx(sum(want) / len(want))


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_the_corrected_sample_estimates_the_full_softmax(distribution):
    states, table, targets = inputs()
    counts = torch.tensor([7, 1, 2, 3, 4, 5, 6, 7, 8])
    sampler = NegativeSampler(9, 8, distribution, counts)
    torch.manual_seed(0)
    sums = torch.zeros(6, dtype=torch.float64)
    draws = 4000
    for _ in range(draws):
        items, log_expected = sampler.draw(torch.device("cpu"))
        weight = (states @ table[items].T - log_expected).exp()
        sums += weight.masked_fill(items == targets[:, None], 0.0).sum(1)
    exponentials = (states @ table[1:].T).exp()
    want = exponentials.sum(1) - exponentials.gather(1, targets[:, None] - 1).squeeze(1)
    assert torch.allclose(sums / draws, want, rtol=0.05)


def test_gbce_by_hand():
    states, table, targets = inputs()
    negatives = torch.tensor([3, 5, int(targets[0])])
    for t in (0.0, 0.75, 1.0):
        alpha = 3 / 7  # of the eight items, seven can be a negative of a target
        beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
        assert t != 0.0 or beta == pytest.approx(1.0)
        want = []
        for state, target in zip(states, targets, strict=True):
            total = beta * F.logsigmoid(state @ table[target] - math.log(7))
            for item in negatives:
                if item != target:
                    total = total + torch.log(1 - torch.sigmoid(state @ table[item] - math.log(7)))
            want.append(-total / 4)
        got = gbce(states, table, targets, negatives, t, 8)
        assert float(got) == pytest.approx(float(sum(want)) / len(want))


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_what_is_drawn(distribution):
    counts = torch.tensor([100, 0, 1, 3, 0])
    sampler = NegativeSampler(5, 4, distribution, counts)
    torch.manual_seed(0)
    drawn = torch.cat([sampler.draw(torch.device("cpu"))[0] for _ in range(5000)])
    share = torch.bincount(drawn, minlength=5) / len(drawn)
    want = [0, 0.25, 0.25, 0.25, 0.25] if distribution == "uniform" else [0, 0, 0.25, 0.75, 0]
    assert torch.allclose(share, torch.tensor(want), atol=0.02)
    assert share[0] == 0
    items, log_expected = sampler.draw(torch.device("cpu"))
    assert torch.allclose(log_expected.exp(), 4 * torch.tensor(want)[items])


def test_popularity_counts_the_train_split():
    settings = small("Hydra", loss_type="SampledCE", negative_distribution="popularity")
    config = Config("Hydra", "tiny", config_dict={**settings, "num_negatives": 10})
    train, *_ = split_dataset(config, create_dataset(config))
    model = config.model_class(config, train._dataset)
    counts = torch.bincount(train._dataset.inter_feat["item_id"], minlength=model.n_items)
    assert torch.allclose(model.negative_samplers[0].probability, counts / counts.sum().double())


def test_negatives_by_popularity_where_nothing_is_popular():
    items, _ = NegativeSampler(6, 4, "popularity", torch.zeros(6)).draw(torch.device("cpu"))
    assert items.min() >= 1 and items.max() <= 5


@pytest.mark.parametrize("training_mode", ["autoregressive", "augmentation"])
@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
@pytest.mark.parametrize("loss_type", ["SampledCE", "gBCE"])
def test_runs_learn_and_load(run_small, loss_type, distribution, training_mode):
    from recbole_hydra import recommend

    result = run_small(
        "Mamba4Rec",
        loss_type=loss_type,
        negative_distribution=distribution,
        num_negatives=16,
        training_mode=training_mode,
        epochs=6,
    )
    losses = [epoch["train_loss"] for epoch in result["history"]]
    assert losses[-1] < losses[0]
    assert len(recommend(result["best_checkpoint"], ["i1", "i2"], k=3)) == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_negatives": 0}, "num_negatives must be a positive integer, got 0"),
        ({"num_negatives": 61}, "num_negatives must be at most the number of items, 60, got 61"),
        ({"negative_distribution": "zipf"}, "negative_distribution must be one of uniform, pop"),
        ({"logq_correction": 1}, "logq_correction must be True or False, got 1"),
        ({"gbce_t": 1.5}, r"gbce_t must be a number in \[0, 1\], got 1.5"),
        (
            {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}},
            "contradicts loss_type gBCE; it is for BPR alone: remove it, and set num_negatives",
        ),
    ],
)
def test_settings_that_do_not_fit(run_small, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_small("Hydra", loss_type="gBCE", **{"num_negatives": 8, **changes})
