"""What is not the architecture is for every causal model: repeat bias, history_as_one, sampled
losses."""

import copy
import math
import pickle

import pytest
import torch
from conftest import DATASETS, small
from recbole.model.sequential_recommender import GRU4Rec, SASRec
from torch import nn

import recbole_hydra
from recbole_hydra import CausalRecommender, Config, Items, Recommender, load_model, recommend
from recbole_hydra.compare.plan import make_plan
from recbole_hydra.data import create_dataset, split_dataset
from recbole_hydra.errors import CheckpointError, ConfigError
from recbole_hydra.layers import RepeatBias
from recbole_hydra.model.causal import GatheredStates, check_causal
from recbole_hydra.quick_start import load_data_and_model
from recbole_hydra.serving.bulk import recommend_all
from recbole_hydra.settings.known_keys import CAUSAL_MODELS, OF_CAUSAL_MODELS
from recbole_hydra.training.run import train
from recbole_hydra.training.window_loss import WindowLoss

SIZES = {
    "SASRec": {
        "n_heads": 1, "n_layers": 1, "inner_size": 16, "hidden_dropout_prob": 0.0,
        "attn_dropout_prob": 0.0,
    },
    "GRU4Rec": {"embedding_size": 16, "dropout_prob": 0.0},
    "Mamba4Rec": {"dropout_prob": 0.0},
}  # fmt: skip
#: As the defaults of all are, so that nothing else is tested here.
PLAIN = {"item_initialization": "normal", "later_targets": []}
LOSSES = ("CE", "BPR", "SampledCE", "gBCE")


def settings(name, base=None, **changes):
    sizes = SIZES[base or name]
    return {**small(name), **PLAIN, **sizes, "num_negatives": 9, **changes}


def made(model, base=None, **changes):
    """Config, model and train and validation data of a class or name, on the tiny dataset."""
    name = model if isinstance(model, str) else model.__name__
    config = Config(model, "tiny", config_dict=settings(name, base, **changes))
    loaders = split_dataset(config, create_dataset(config))
    torch.manual_seed(0)
    return config, config.model_class(config, loaders[0]._dataset), loaders


def randomise(model, std=0.1):
    for parameter in model.repeat_bias.parameters():
        nn.init.normal_(parameter, std=std)


@recbole_hydra.causal
class Mine(SASRec):
    """A user's own: half of SASRec's states."""

    def forward(self, item_seq, item_seq_len):
        return super().forward(item_seq, item_seq_len) * 0.5


class Named(SASRec):
    """One that is not registered."""


# -- they train ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, loss_type, form, mode",
    [
        ("SASRec", "CE", "item", "auto"),
        ("SASRec", "BPR", "distance", "auto"),
        ("SASRec", "SampledCE", "shared", "augmentation"),
        ("SASRec", "gBCE", "none", "auto"),
        ("GRU4Rec", "CE", "distance", "augmentation"),
        ("GRU4Rec", "BPR", "shared", "auto"),
        ("GRU4Rec", "SampledCE", "none", "auto"),
        ("GRU4Rec", "gBCE", "item", "auto"),
        ("Mamba4Rec", "CE", "item", "auto"),
        (Mine, "SampledCE", "item", "auto"),
    ],
)
def test_every_loss_and_bias_trains(model, loss_type, form, mode):
    base = "SASRec" if model is Mine else None
    own = {"loss_type": loss_type, "repeat_bias": form, "training_mode": mode, "stopping_step": 9}
    name = model if base is None else model.__name__
    run = train(model, "tiny", config_dict=settings(name, base, **own), saved=False)
    first, *_, last = (entry["train_loss"] for entry in run.result["history"])
    assert last < first
    net = run.trainer.model
    assert net.loss_type == loss_type and type(net).__name__ == name
    assert (net.repeat_bias is None) == (form == "none")
    if net.repeat_bias is not None:  # in tiny users walk on: what they had they do not have again
        assert float(net.repeat_bias.weight.sum()) != 0


# -- the loss is its formula ---------------------------------------------------------------------


def dense_loss(loss_type, scores, targets, others, drawn, expected):
    """The loss of all scores of a batch, (targets, n_items), held at once."""
    rows, n = torch.arange(len(targets)), scores.shape[1] - 1
    positive, negative = scores[rows, targets], scores[:, drawn]
    same = drawn == targets[:, None]
    if loss_type == "CE":
        return torch.nn.functional.cross_entropy(scores, targets)
    if loss_type == "BPR":
        pairs = positive[:, None] - scores.gather(1, others)
        return -torch.log(1e-10 + torch.sigmoid(pairs)).mean()
    if loss_type == "SampledCE":
        negative = (negative - expected).masked_fill(same, -torch.inf)
        return (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
    alpha, chance = len(drawn) / (n - 1), math.log(n - 1)
    beta = alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha)
    rest = torch.log(1 - torch.sigmoid(negative - chance)).masked_fill(same, 0.0).sum(1)
    return -(beta * torch.log(torch.sigmoid(positive - chance)) + rest).mean() / (len(drawn) + 1)


@pytest.mark.parametrize("mode", ["autoregressive", "augmentation"])
@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec"])
def test_the_loss_is_that_of_all_scores(name, loss_type, mode, monkeypatch):
    _, model, loaders = made(name, loss_type=loss_type, repeat_bias="item", training_mode=mode)
    randomise(model)
    batch = next(iter(loaders[0]))
    drawn, expected = torch.tensor([1, 5, 7, 5]), torch.tensor([0.2, 0.5, 0.1, 0.5]).log()
    monkeypatch.setattr(CausalRecommender, "_drawn_negatives", lambda *_: [(drawn, expected)])
    items, targets = batch["item_id_list"], batch["item_id"].flatten()
    if mode == "autoregressive":
        last = targets.nonzero().squeeze(1)
        targets, compute = targets[last], WindowLoss(model)
        others = batch["neg_item_id"].flatten(0, 1)[last] if loss_type == "BPR" else None
    else:
        last = torch.arange(len(items)) * items.shape[1] + batch["item_length"] - 1
        compute = model.calculate_loss
        others = batch["neg_item_id"][:, None] if loss_type == "BPR" else None

    plain = GatheredStates(copy.deepcopy(model))  # the states as they are without ours
    plain.model.forward = lambda *rows: plain.model.plain.forward(plain.model, *rows)
    scores = plain.encode(items, last) @ model.item_embedding.weight.T
    less = torch.zeros_like(scores)
    assert model.history_as_one == (loss_type in ("CE", "SampledCE"))
    for row, position in enumerate(last.tolist()):
        user, t = divmod(position, items.shape[1])
        had = sorted({*items[user, : t + 1].tolist()} - {0})
        less[row, had] = -math.log(len(had)) if model.history_as_one else 0.0
    want = dense_loss(loss_type, scores + less, targets, others, drawn, expected)
    dense_loss(
        loss_type, model.repeat_bias(items, last).added_to(scores.detach()), targets, others,
        drawn, expected,
    ).backward()  # fmt: skip
    gradients = {n: p.grad.clone() for n, p in model.repeat_bias.named_parameters()}
    model.zero_grad()
    loss = compute(batch)
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-5)
    loss.backward()
    for n, parameter in model.repeat_bias.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[n], atol=1e-6, rtol=1e-4)
    assert model.item_embedding.weight.grad.abs().sum() > 0


# -- the scores are the model's own, and the numbers ----------------------------------------------


@pytest.mark.parametrize("form", RepeatBias.FORMS)
@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "Mine"])
def test_scores_are_the_model_s_own_and_the_bias(name, form):
    model_class, base = (Mine, "SASRec") if name == "Mine" else (name, None)
    _, model, loaders = made(model_class, base, repeat_bias=form)
    _, plain, _ = made(model_class, base)
    assert not isinstance(plain, CausalRecommender)
    # What both have starts alike.
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    more = model.state_dict().keys() - plain.state_dict().keys()
    assert all(key.startswith("repeat_bias.") for key in more)
    randomise(model)
    model.eval(), plain.eval()
    rows = next(iter(loaders[1]))[0]
    want = plain.full_sort_predict(rows)
    last = torch.arange(len(rows)) * rows["item_id_list"].shape[1] + rows["item_length"] - 1
    offsets = model.repeat_bias(rows["item_id_list"], last)
    want = offsets.added_to(want)
    got = model.full_sort_predict(rows)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    rows["item_id"] = rows["item_id_list"][:, 0]
    one = want.gather(1, rows["item_id"][:, None]).squeeze(1)
    torch.testing.assert_close(model.predict(rows), one, rtol=1e-5, atol=1e-6)
    check_causal(model, 12)


# -- without them nothing changes ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec"])
def test_without_them_the_model_is_recboles(name):
    off = {"repeat_bias": "none", "history_as_one": False, "num_negatives": 5, "gbce_t": 0.1}
    recboles = {"SASRec": SASRec, "GRU4Rec": GRU4Rec}[name]
    results = []
    for changes in ({}, {"repeat_bias": None}, off):
        run = train(name, "tiny", config_dict=settings(name, **changes), saved=False)
        assert type(run.trainer.model) is recboles and run.config.model_class is recboles
        results.append([entry["train_loss"] for entry in run.result["history"]])
    assert results[0] == results[1] == results[2]
    # What is set, and nothing reads with this loss, is said.
    said = [note for note in run.config.notes if "is not used" in note]
    assert said == [
        "num_negatives is not used: it is for loss_type SampledCE and gBCE, not CE",
        "gbce_t is not used: it is for loss_type gBCE, not CE",
    ]


def test_the_names_of_known_models_are_those_of_the_registry():
    from recbole_hydra.model.causal import _RECBOLES

    assert tuple(model.__name__ for model in _RECBOLES) == CAUSAL_MODELS
    for name in CAUSAL_MODELS:
        config = Config(name, "ml-100k")
        assert config["repeat_bias"] == "none" and {*OF_CAUSAL_MODELS} <= {
            *config.final_config_dict
        }
        assert not any("is not used" in note for note in config.notes)
    assert "repeat_bias" not in Config("BERT4Rec", "ml-100k").final_config_dict
    # A model's own sizes are its own.
    assert Config("GRU4Rec", "ml-100k", config_dict={"repeat_bias": "item"})["hidden_size"] == 128


def test_mamba4rec_s_parameters_are_what_they_were():
    _, model, _ = made("Mamba4Rec")
    _, more, _ = made("Mamba4Rec", repeat_bias="item")
    assert model.repeat_bias is None and not model.history_as_one
    keys = {"repeat_bias.weight", "repeat_bias.item_weight"}
    assert more.state_dict().keys() - model.state_dict().keys() == keys
    for key, value in model.state_dict().items():
        assert torch.equal(more.state_dict()[key], value)


def test_mamba4rec_is_served_with_its_numbers():
    """What goes through the compiled encoder is what the model says."""
    run = train("Mamba4Rec", "tiny", config_dict=settings("Mamba4Rec", repeat_bias="distance"))
    model = load_model(run.result["best_checkpoint"])
    randomise(model)
    known = model.checkpoint["vocabulary"].field2id_token["item_id"]
    tokens = [str(known[item]) for item in (3, 5, 3)]
    want = recommend(model, tokens, k=5)
    with Recommender(model) as service:
        found = service.recommend_to_history(tokens, k=5)
    assert [item for item, _ in found] == [item for item, _ in want]
    assert [s for _, s in found] == pytest.approx([s for _, s in want], abs=1e-4)


# -- saved, made again, continued ----------------------------------------------------------------


@pytest.mark.parametrize("name, loss_type", [("SASRec", "CE"), ("GRU4Rec", "SampledCE")])
def test_saved_made_again_and_continued(name, loss_type):
    own = settings(name, repeat_bias="item", loss_type=loss_type, epochs=1)
    run = train(name, "tiny", config_dict=own)
    path = run.result["best_checkpoint"]
    rows = next(iter(run.loaders[2]))[0]
    trained = run.trainer.model.eval()
    assert float(trained.repeat_bias.item_weight.abs().sum()) > 0
    want = trained.full_sort_predict(rows)
    for again in (load_model(path), load_data_and_model(path)[1].eval()):
        assert type(again) is type(trained)
        torch.testing.assert_close(again.full_sort_predict(rows), want, rtol=0, atol=0)
    # recommend, and the service, rank by these scores.
    model = load_model(path)
    vocabulary = model.checkpoint["vocabulary"]
    history = rows["item_id_list"][0, : int(rows["item_length"][0])]
    tokens = [str(vocabulary.field2id_token["item_id"][i]) for i in history.tolist()]
    want[:, 0] = -torch.inf
    best = want[0].topk(5)
    names = [str(vocabulary.field2id_token["item_id"][i]) for i in best.indices.tolist()]
    for found in (
        recommend(model, tokens, k=5),
        Recommender(load_model(path)).recommend_to_history(tokens, k=5),
    ):
        assert [item for item, _ in found] == names
        assert [score for _, score in found] == pytest.approx(best.values.tolist(), abs=1e-5)
    with Recommender(model) as service:
        assert len(service.similar(tokens[0], k=3)) == 3
        assert recommend_all(service, "all.parquet", k=3) > 0
    # An epoch more is what two epochs at once are.
    more = train(resume=run.result["last_checkpoint"], config_dict={"epochs": 2})
    whole = train(name, "tiny", config_dict={**own, "epochs": 2})
    assert type(more.trainer.model) is type(trained)
    for key, value in whole.trainer.model.state_dict().items():
        torch.testing.assert_close(more.trainer.model.state_dict()[key], value, rtol=0, atol=0)


def test_a_checkpoint_without_its_numbers_is_one_line(tmp_path):
    plain = train("GRU4Rec", "tiny", config_dict=settings("GRU4Rec", epochs=1))
    path = plain.result["best_checkpoint"]
    with pytest.raises(CheckpointError, match=r"its weights do not fit this GRU4Rec .*repeat_bias"):
        load_model(path, config_dict={"repeat_bias": "item"})
    assert load_model(path).checkpoint["config"]["repeat_bias"] == "none"


def test_the_class_can_be_pickled():
    _, model, _ = made(Mine, "SASRec", repeat_bias="item")
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model) and type(again).plain is Mine
    config = Config(type(model), "tiny", config_dict=settings("Mine", "SASRec"))
    assert config.model_class is Mine  # without the setting it is what it was


# -- models of users, and of features ------------------------------------------------------------


def test_a_model_that_a_setting_names_has_them():
    own = {"repeat_bias": "shared", "causal_models": ["Named"]}
    config, model, _ = made(Named, "SASRec", **own)
    assert config["training_mode"] == "autoregressive" and model.repeat_bias is not None
    check_causal(model, 12)


def test_a_class_of_a_file_has_them(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import recbole_hydra\nfrom recbole.model.sequential_recommender import GRU4Rec\n\n"
        "@recbole_hydra.causal\nclass Slow(GRU4Rec):\n    pass\n"
    )
    own = settings("Slow", "GRU4Rec", repeat_bias="item", epochs=1)
    run = train(f"{file}:Slow", "tiny", config_dict=own)
    model = load_model(run.result["best_checkpoint"], f"{file}:Slow")
    assert type(model).__name__ == "Slow" and model.repeat_bias is not None


class Means(CausalRecommender):
    """A user's subclass: a state is the mean of the items so far."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = nn.Embedding(self.n_items, config["hidden_size"], padding_idx=0)
        self.items = Items(self.n_items, self.item_embedding)

    def states(self, item_seq):
        count = torch.arange(1, item_seq.shape[1] + 1, device=item_seq.device)
        return self.items.vectors(item_seq).cumsum(1) / count[:, None]


@pytest.mark.parametrize("form", [None, "item"])
def test_a_subclass_of_causalrecommender_has_them(form):
    own = {**small("Means"), **PLAIN} | ({} if form is None else {"repeat_bias": form})
    run = train(Means, "tiny", config_dict=own)
    model = load_model(run.result["best_checkpoint"], Means)
    assert (model.repeat_bias is None) == (form is None) and model.history_as_one == bool(form)


def test_a_model_of_features_has_them(make_ring):
    path = make_ring("rich", items=16, users=20)
    own = {**settings("SASRecF", "SASRec"), "data_path": path, "selected_features": ["brand"]}
    own |= {"repeat_bias": "item", "loss_type": "gBCE", "epochs": 1}
    run = train("SASRecF", "rich", config_dict=own)
    rows = next(iter(run.loaders[2]))[0]
    again = load_data_and_model(run.result["best_checkpoint"])[1].eval()
    want = run.trainer.model.eval().full_sort_predict(rows)
    torch.testing.assert_close(again.full_sort_predict(rows), want, rtol=0, atol=0)


def test_domains_have_no_settings_of_it(make_ring):
    path = make_ring("one", names=("user_id", "item_id"))
    make_ring("two", items=10, users=30, seed=1)
    own = settings("GRU4Rec", domains=["one", "two"], data_path=path, repeat_bias="item")
    plain = Config("GRU4Rec", config_dict={**own, "repeat_bias": "none"})
    assert Config("GRU4Rec", config_dict=own)["domain_settings"] == plain["domain_settings"]


# -- bad input -----------------------------------------------------------------------------------


class NotItsScores(SASRec):
    def full_sort_predict(self, interaction):
        return super().full_sort_predict(interaction) + torch.arange(self.n_items)


class WithAdapter(SASRec):
    pass


class Adapter(GatheredStates):
    pass


recbole_hydra.causal(WithAdapter, adapter=Adapter)

CAUSAL = r"for causal models \(Hydra, Mamba4Rec, SASRec, .*causal_models names\)"


@pytest.mark.parametrize(
    "model, changes, what",
    [
        ("SASRec", {"repeat_bias": "items"}, "repeat_bias must be one of item, shared, distance"),
        ("SASRec", {"history_as_one": 3}, "history_as_one must be True or False"),
        ("SASRec", {"loss_type": "CEE"}, "loss_type must be one of CE, BPR, SampledCE, gBCE, got"),
        ("GRU4Rec", {"num_negatives": 0}, "num_negatives must be a positive integer"),
        ("GRU4Rec", {"negative_distribution": "x"}, "negative_distribution must be one of uniform"),
        ("GRU4Rec", {"gbce_t": 2}, "gbce_t must be a number in"),
        ("GRU4Rec", {"logq_correction": "x"}, "logq_correction must be True or False"),
        ("SASRec", {"history_as_one": True}, "history_as_one: True leaves it to the repeat bias"),
        (
            "SASRec",
            {"history_as_one": True, "repeat_bias": "item", "loss_type": "gBCE"},
            "history_as_one: True is for loss_type CE and SampledCE, .*not for gBCE",
        ),
        ("SASRec", {"loss_type": "SampledCE", "num_negatives": 9_999}, "num_negatives must be at "),
        (
            "SASRec",
            {"loss_type": "gBCE", "train_neg_sample_args": {"distribution": "uniform"}},
            "contradicts loss_type gBCE; it is for BPR alone",
        ),
        ("BERT4Rec", {"loss_type": "SampledCE"}, f"loss_type: SampledCE is {CAUSAL}, not for BERT"),
        ("NARM", {"loss_type": "gBCE"}, f"loss_type: gBCE is {CAUSAL}, not for NARM; use CE or"),
        (Named, {"loss_type": "gBCE"}, f"loss_type: gBCE is {CAUSAL}, not for Named"),
        (WithAdapter, {"repeat_bias": "item"}, "WithAdapter is registered .*computed by Adapter"),
        (
            "NARM",
            {"repeat_bias": "item", "causal_models": ["NARM"], "training_mode": "augmentation"},
            "NARM is registered as causal, but does not offer its states",
        ),
        (
            NotItsScores,
            {"repeat_bias": "item", "causal_models": ["NotItsScores"]},
            "scores are not the inner products .*without repeat_bias, SampledCE and gBCE",
        ),
        (
            "Caser",
            {"repeat_bias": "item", "causal_models": ["Caser"], "training_mode": "augmentation"},
            "Caser",
        ),
    ],
)
def test_bad_input_is_one_line(model, changes, what):
    name = model if isinstance(model, str) else model.__name__
    base = name if name in SIZES else "SASRec"
    with pytest.raises(ConfigError, match=what) as caught:
        recbole_hydra.run_recbole_hydra(
            model, "tiny", config_dict=settings(name, base, **changes), saved=False
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["BERT4Rec", "Pop", "NARM"])
def test_a_model_that_cannot_have_it_is_said(name):
    config = Config(name, "tiny", config_dict={"data_path": str(DATASETS), "repeat_bias": "item"})
    (note,) = [note for note in config.notes if "repeat_bias" in note]
    assert note.startswith(f"config_dict: {name} does not read 'repeat_bias', which is for causal")


def test_a_comparison_gives_it_to_each_that_can_take_it(tmp_path):
    plan = make_plan(
        ["SASRec", "GRU4Rec", "Mamba4Rec"], "tiny", 1, tmp_path, None, None,
        {"data_path": str(DATASETS)}, ["--repeat_bias=item", "--n_heads=1"], True,
    )  # fmt: skip
    given = {
        name: own.get("repeat_bias") for name, own in plan.identity["settings"]["tiny"].items()
    }
    assert given == {"SASRec": "item", "GRU4Rec": "item", "Mamba4Rec": "item", "Pop": None} or (
        given.pop("Pop") and set(given.values()) == {"item"}
    )
    (note,) = plan.notes
    assert note.startswith("command line: Pop does not read 'repeat_bias'")
