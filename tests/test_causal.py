"""Which models train on every position: those that are registered, and are what they say."""

import pytest
import torch
from conftest import DATASETS, small
from recbole.model.sequential_recommender import GRU4Rec, SASRec
from torch import nn

import recbole_hydra
from recbole_hydra import CausalRecommender, Config, Items, load_model, recommend
from recbole_hydra.data import create_dataset, split_dataset
from recbole_hydra.errors import CheckpointError, ConfigError
from recbole_hydra.model import get_model
from recbole_hydra.model.causal import GatheredStates, causal_model, check_causal, is_causal


def made(model, **changes):
    """A model of a class or name, on the tiny dataset."""
    name = model if isinstance(model, str) else model.__name__
    config = Config(model, "tiny", config_dict=small(name, **changes))
    loaders = split_dataset(config, create_dataset(config))
    return config, config.model_class(config, loaders[0]._dataset), loaders


class DecayingMean(CausalRecommender):
    """The causal model of the documentation: a state is a decaying mean of the items so far."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = nn.Embedding(self.n_items, config["hidden_size"], padding_idx=0)
        self.items = Items(self.n_items, self.item_embedding)
        self.decay = nn.Parameter(torch.zeros(()))

    def states(self, item_seq):
        H = self.items.vectors(item_seq)
        t = torch.arange(item_seq.shape[1], device=item_seq.device)
        age = (t[:, None] - t).clamp_min(0)
        weight = torch.sigmoid(self.decay) ** age * (t[:, None] >= t)
        return weight @ H


class LooksAhead(DecayingMean):
    """The same over all items, later ones included."""

    def states(self, item_seq):
        H = self.items.vectors(item_seq)
        return H.mean(1, keepdim=True) + H


class CountsPadding(DecayingMean):
    """A state that knows how long the row is."""

    def states(self, item_seq):
        length = (item_seq > 0).sum(1)[:, None, None]
        return self.items.vectors(item_seq) * length


@pytest.mark.parametrize("loss_type", ["CE", "BPR", "SampledCE", "gBCE"])
def test_a_causal_model_of_twenty_lines_joins(loss_type, tmp_path):
    changes = {"loss_type": loss_type, "num_negatives": 20, "later_targets": []}
    result = recbole_hydra.run_recbole_hydra(
        DecayingMean, "tiny", config_dict=small("DecayingMean", **changes)
    )
    assert result["history"][-1]["train_loss"] < result["history"][0]["train_loss"]
    model = load_model(result["best_checkpoint"], DecayingMean)
    assert model.checkpoint["config"]["training_mode"] == "autoregressive"
    item = model.checkpoint["vocabulary"].field2id_token["item_id"][1]
    assert len(recommend(model, [item], k=3)) == 3


def test_its_states_are_those_of_prefixes():
    _, model, _ = made(DecayingMean)
    model.eval()
    items = torch.randint(1, model.n_items, (3, 7))
    states = model.states(items)
    for length in range(1, 8):
        got = model.forward(items, torch.full((3,), length))
        torch.testing.assert_close(got, states[:, length - 1])


class KnowsTheWidth(DecayingMean):
    """States that depend on how far the row is padded."""

    def states(self, item_seq):
        return self.items.vectors(item_seq) / item_seq.shape[1]


class LooksFarAhead(DecayingMean):
    """A first state that an item far behind it changes."""

    def states(self, item_seq):
        H = self.items.vectors(item_seq)
        return torch.cat([H[:, :1] + H[:, 20:21].sum(1, keepdim=True), H[:, 1:]], dim=1)


@pytest.mark.parametrize(
    "model, what",
    [
        (LooksAhead, "depends on the item at position 1 or later"),
        (LooksFarAhead, "state at position 0 depends on the item"),
        (CountsPadding, "depends on the padding"),
        (KnowsTheWidth, "depends on how long the row is"),
    ],
)
def test_a_model_that_is_not_causal_is_refused(model, what):
    settings = small(model.__name__, MAX_ITEM_LIST_LENGTH=50)
    with pytest.raises(ConfigError, match=f"{model.__name__} is registered as causal, .*{what}"):
        recbole_hydra.run_recbole_hydra(model, "tiny", config_dict=settings)


class WithoutItems(CausalRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = nn.Embedding(self.n_items, config["hidden_size"], padding_idx=0)


class WithoutStates(DecayingMean):
    states = CausalRecommender.states


class OneShort(DecayingMean):
    def states(self, item_seq):
        return super().states(item_seq)[:, 1:]


class Nothing(DecayingMean):
    def encode(self, item_seq, keep=None):
        return None


class Doubts(DecayingMean):
    def states(self, item_seq):
        raise AssertionError


@pytest.mark.parametrize(
    "model, what",
    [
        (WithoutItems, "what its items are is missing; in __init__, set self.items = Items"),
        (WithoutStates, "has no method states"),
        (OneShort, "does not offer its states: "),
        (Nothing, r"are \(positions, width\), got NoneType"),
        (Doubts, "does not offer its states: AssertionError"),
    ],
)
def test_what_a_user_forgets_is_one_line(model, what):
    with pytest.raises(ConfigError, match=what) as caught:
        recbole_hydra.run_recbole_hydra(model, "tiny", config_dict=small(model.__name__))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["SASRec", 3, int])
def test_only_model_classes_are_registered(wrong):
    with pytest.raises(ConfigError, match="causal: takes a model class"):
        recbole_hydra.causal(adapter=None)(wrong)
    with pytest.raises(ConfigError, match="causal: adapter must be a class"):
        recbole_hydra.causal(SASRec, adapter=3)


def test_names_that_are_no_models_are_refused():
    with pytest.raises(ConfigError, match="causal_models: there is no model 'Foo'"):
        made("Hydra", causal_models="Foo")
    with pytest.raises(ConfigError, match="'sasrec'; did you mean 'SASRec'"):
        made("Hydra", causal_models=["Caser", "sasrec"])
    made("Hydra", causal_models="Caser")


def test_a_checkpoint_of_a_class_of_ones_own_asks_for_it():
    settings = small("DecayingMean", epochs=1)
    path = recbole_hydra.run_recbole_hydra(DecayingMean, "tiny", config_dict=settings)
    path = path["best_checkpoint"]
    for read in (load_model, recbole_hydra.load_data_and_model, lambda p: recommend(p, ["1"])):
        with pytest.raises(CheckpointError, match="no model 'DecayingMean', so it is a class"):
            read(path)
    assert recbole_hydra.load_data_and_model(path, DecayingMean)[1].n_items > 1


class MySASRec(SASRec):
    """A user's own: its input is what SASRec's is, and half as large."""

    def forward(self, item_seq, item_seq_len):
        return super().forward(item_seq, item_seq_len) * 0.5


class Registered(MySASRec):
    pass


recbole_hydra.causal(Registered)


@pytest.mark.parametrize("way", ["decorator", "setting"])
def test_a_subclass_of_sasrec_joins(way):
    model = Registered if way == "decorator" else MySASRec
    name = model.__name__
    changes = {} if way == "decorator" else {"causal_models": [name]}
    own = small("SASRec", n_heads=1, **changes)
    result = recbole_hydra.run_recbole_hydra(model, "tiny", config_dict=own, saved=False)
    assert result["epochs_run"] == 2
    config, net, loaders = made(model, n_heads=1, **changes)
    assert config["training_mode"] == "autoregressive" and type(loaders[0]).__name__ == (
        "WindowLoader"
    )
    assert isinstance(causal_model(net), GatheredStates)


def test_without_registration_it_trains_as_recbole_trains_it():
    config, _, _ = made(MySASRec, n_heads=1)
    assert config["training_mode"] == "augmentation" and not is_causal(MySASRec)
    with pytest.raises(ConfigError, match="training_mode: autoregressive is for .* not for MySAS"):
        made(MySASRec, training_mode="autoregressive")


def test_what_a_class_lacks_is_said_when_it_is_registered():
    class Three(SASRec):
        def forward(self, item_seq, item_seq_len, more):
            return item_seq

    with pytest.raises(ConfigError, match=r"causal: Three lacks forward\(item_seq, item_seq_len"):
        recbole_hydra.causal(Three)
    with pytest.raises(ConfigError, match="causal: SASRec lacks encode, item_table, target_loss"):
        recbole_hydra.causal(SASRec, adapter=None)
    assert is_causal(SASRec)


class NoInnerProduct(SASRec):
    def full_sort_predict(self, interaction):
        return super().full_sort_predict(interaction) + torch.arange(self.n_items)


def test_scores_that_are_no_inner_products_are_refused():
    changes = {"causal_models": ["NoInnerProduct"], "n_heads": 1}
    with pytest.raises(ConfigError, match="its scores are not the inner products"):
        recbole_hydra.run_recbole_hydra(
            NoInnerProduct, "tiny", config_dict=small("NoInnerProduct", **changes)
        )


def test_looking_draws_from_no_generator():
    _, model, _ = made("Hydra")
    before = torch.get_rng_state()
    check_causal(model, 12)
    assert torch.equal(torch.get_rng_state(), before) and model.training


@pytest.mark.parametrize("name", ["Hydra", "Mamba4Rec", "SASRec", "GRU4Rec"])
def test_the_known_ones_are_causal(name):
    _, model, _ = made(name, **({"n_heads": 1} if name == "SASRec" else {}))
    check_causal(model, 12)
    assert is_causal(get_model(name))


@pytest.mark.parametrize("model", [SASRec, GRU4Rec])
def test_own_losses_and_states_are_those_of_the_model(model):
    """What the adapter computes on a batch of prefixes is what RecBole's model computes."""
    for loss_type in ("CE", "BPR"):
        config, net, loaders = made(
            model, loss_type=loss_type, training_mode="augmentation", n_heads=1,
            hidden_dropout_prob=0.0, attn_dropout_prob=0.0, dropout_prob=0.0,
        )  # fmt: skip
        batch = next(iter(loaders[0]))
        batch = batch if not isinstance(batch, tuple) else batch[0]
        net.train()
        offered, items = causal_model(net), batch[net.ITEM_SEQ]
        last = torch.arange(len(items)) * items.shape[1] + batch[net.ITEM_SEQ_LEN] - 1
        negatives = batch[net.NEG_ITEM_ID][:, None] if loss_type == "BPR" else None
        states = offered.encode(items, last)
        loss = offered.target_loss(states, batch[net.POS_ITEM_ID], (items, last), negatives)
        torch.testing.assert_close(loss, net.calculate_loss(batch), rtol=1e-5, atol=1e-5)


def test_tables_take_models_that_are_named(tmp_path):
    from recbole_hydra.compare.plan import _training_mode
    from recbole_hydra.model import get_model

    arguments = {"causal_models": "LightSANs"}
    classes = {name: get_model(name) for name in ("Hydra", "LightSANs")}
    assert _training_mode(arguments, {}, [], classes) == "autoregressive"
    assert DATASETS.is_dir()


#: RecBole's sequential models that read no other files, and what the check says of each: docs.
NOT_CAUSAL = {
    "depends on the item at position": ["FEARec", "GCSAN", "LightSANs"],
    "does not offer its states": [
        "Caser", "GRU4RecCPR", "HGN", "NARM", "NPE", "RepeatNet", "SASRecCPR", "SHAN", "SINE",
        "SRGNN", "STAMP",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "what, name", [(what, name) for what, names in NOT_CAUSAL.items() for name in names]
)
def test_what_recboles_other_models_are(what, name, capsys):
    _, model, _ = made(name, training_mode="augmentation")
    assert not is_causal(type(model)) and GatheredStates.lacks(type(model)) is None
    with pytest.raises(ConfigError, match=what):
        check_causal(model, 12)


@pytest.mark.parametrize(
    "name", ["BERT4Rec", "CORE", "DIEN", "DIN", "FOSSIL", "FPMC", "HRM", "NextItNet", "TransRec"]
)
def test_those_whose_state_is_not_of_items_alone_lack_the_form(name):
    assert "forward(item_seq, item_seq_len)" in GatheredStates.lacks(get_model(name))


@pytest.mark.parametrize("name", ["SASRecF", "GRU4RecF", "FDSA"])
@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_models_of_features_train_on_every_position(name, loss_type, make_dataset, tmp_path):
    rows = [(f"u{u}", f"i{(u + n) % 9}", n) for u in range(14) for n in range(7)]
    path = make_dataset("shop", rows)
    lines = ["item_id:token\tclass:token", *(f"i{n}\tc{n % 3}" for n in range(9))]
    (tmp_path / "data" / "shop" / "shop.item").write_text("\n".join(lines) + "\n")
    own = {"data_path": path, "selected_features": ["class"], "loss_type": loss_type}
    own |= {"train_batch_size": 16, "later_targets": [], "item_initialization": "normal"}
    own |= {"dropout_prob": 0.0, "num_layers": 1} if name == "GRU4RecF" else {"n_heads": 1}
    config = Config(name, "shop", config_dict={**small(name, **own)})
    assert config["training_mode"] == "autoregressive"
    loaders = split_dataset(config, create_dataset(config))
    model = config.model_class(config, loaders[0]._dataset)
    check_causal(model, 12)
    result = recbole_hydra.run_recbole_hydra(
        name, "shop", config_dict=small(name, **own), saved=False
    )
    assert result["history"][-1]["train_loss"] < result["history"][0]["train_loss"]
