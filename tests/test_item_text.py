"""Item text: what the item LLM reads, its states, and Hydra on them."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small

import recbole_hydra
from recbole_hydra import Config, add_items, load_model, recommend, run_recbole_hydra
from recbole_hydra.cli import main
from recbole_hydra.data import create_dataset, split_dataset
from recbole_hydra.errors import CheckpointError, ConfigError, DatasetError
from recbole_hydra.layers import ItemLLM, find_llm, frozen_states, hash_llm, item_llm
from recbole_hydra.model.losses import sampled_cross_entropy
from recbole_hydra.training.window_loss import WindowLoss


@pytest.fixture
def settings(make_ring, make_llm, tmp_path):
    """Settings of Hydra on the texts of a ring of 24 items with 2 more that nobody had."""

    def make(**changes):
        if not (tmp_path / "data").exists():
            make_ring("ring", cold=2)
        given = {
            "data_path": str(tmp_path / "data"),
            "item_encoder": "text",
            "item_llm": make_llm(),
            "item_text_fields": ["title", "brand"],
            "item_llm_cache": str(tmp_path / "cache"),
            "initializer_range": 0.1,
            "num_negatives": 8,
        }
        return small("Hydra", **{**given, **changes})

    return make


def prepared(settings):
    """(Config, train loader, model)."""
    config = Config("Hydra", "ring", config_dict=settings)
    train, *_ = split_dataset(config, create_dataset(config))
    return config, train, config.model_class(config, train._dataset)


# -- what the LLM reads --------------------------------------------------------------------------


def test_sentences(settings, tmp_path):
    config = Config("Hydra", "ring", config_dict=settings())
    path = tmp_path / "data" / "ring" / "ring.item"
    path.write_text(path.read_text().replace("red one\t", 'the "NA"  ink\t', 1))
    dataset = create_dataset(config)
    text = dict(zip(dataset.field2id_token["item_id"], dataset.item_text, strict=True))
    assert len(text) == 27 and text["[PAD]"] == ""
    assert text["i0"] == 'Item: title: the "NA" ink'  # quotes are text, a second space is not
    assert text["i1"] == "Item: title: red two, brand: acme"
    assert text["i25"] == "Item: title: red two, brand: acme"  # nobody had it


@pytest.mark.parametrize(
    "fields, prompt, want",
    [
        (["brand", "title"], "A: ", "A: brand: acme, title: red two"),
        (["year"], "", "year: 1991"),
        (None, "", "title: red two, brand: acme"),  # columns with text
    ],
)
def test_fields_and_prompt(settings, fields, prompt, want):
    config = Config(
        "Hydra", "ring", config_dict=settings(item_text_fields=fields, item_prompt=prompt)
    )
    dataset = create_dataset(config)
    assert dataset.item_text[dataset.token2id("item_id", "i1")] == want


def test_fields_from_a_command_line(settings):
    argv = ["--item_text_fields=title,brand"]
    config = Config("Hydra", "ring", config_dict=settings(item_text_fields=None), argv=argv)
    assert config["item_text_fields"] == ["title", "brand"]


def test_items_without_text(settings):
    with pytest.raises(DatasetError, match=r"13 of 26 items have no text in ring.item \(i\d+, i"):
        create_dataset(Config("Hydra", "ring", config_dict=settings(item_text_fields=["brand"])))


def test_fallback_text(settings):
    changes = {"item_text_fields": ["brand"], "missing_item_text": "nothing"}
    dataset = create_dataset(Config("Hydra", "ring", config_dict=settings(**changes)))
    assert dataset.item_text[dataset.token2id("item_id", "i0")] == "Item: nothing"


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda path: path.unlink(), "there is no file .*ring.item"),
        (lambda path: path.write_text("item_id:token\n"), "asks for 'title'"),
        (lambda path: path.write_text("id:token\ttitle:token_seq\n"), "no column 'item_id'"),
        (lambda path: path.write_text("item_id:token\ttitel:token\n"), "did you mean 'titel'"),
        (lambda path: path.write_text("item_id:token\ttitle:token\ni1\n\ti\tx\ty\n"), "cannot be"),
    ],
)
def test_broken_item_files(settings, tmp_path, break_it, message):
    config = Config("Hydra", "ring", config_dict=settings())
    break_it(tmp_path / "data" / "ring" / "ring.item")
    with pytest.raises(DatasetError, match=message) as error:
        create_dataset(config)
    assert "\n" not in str(error.value)


def test_no_text_columns(settings, tmp_path):
    config = Config("Hydra", "ring", config_dict=settings(item_text_fields=None))
    path = tmp_path / "data" / "ring" / "ring.item"
    path.write_text("item_id:token\tprice:float\ni1\t3\n")
    with pytest.raises(DatasetError, match="no column with text .*price; set item_text_fields"):
        create_dataset(config)


def test_rank_all_items(settings, tmp_path):
    """By id the .item file stays closed, unless it is asked for; with text it is read."""
    given = settings(item_encoder="id")
    assert create_dataset(Config("Hydra", "ring", config_dict=given)).item_num == 25
    given["rank_all_items"] = True
    for model in ("Hydra", "SASRec", "Pop"):
        keys = (
            given if model == "Hydra" else {"data_path": given["data_path"], "rank_all_items": True}
        )
        assert create_dataset(Config(model, "ring", config_dict=keys)).item_num == 27
    (tmp_path / "data" / "ring" / "ring.item").unlink()
    with pytest.raises(DatasetError, match="there is no .*ring.item, whose items rank_all_items"):
        create_dataset(Config("Hydra", "ring", config_dict=given))


# -- the item LLM --------------------------------------------------------------------------------

TEXTS = ["Item: title: red one", "grey", "Item: title: blue two, brand: acme", ""]


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_state_at_item(make_llm, kind):
    """Against transformers itself: one text at a time, the vector of [ITEM] behind its tokens."""
    import transformers

    folder = make_llm(kind)
    llm = ItemLLM(folder).eval()
    llm.tokenise(TEXTS)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    table = model.get_input_embeddings().weight
    token = tokenizer.eos_token_id if kind == "causal" else tokenizer.cls_token_id
    assert torch.equal(llm.item_token, table[token])
    with torch.no_grad():
        got = llm(torch.tensor([2, 0, 3, 1]))
        for row, i in zip(got, [2, 0, 3, 1], strict=True):
            embedded = torch.cat([table[tokenizer(TEXTS[i])["input_ids"]], llm.item_token[None]])
            want = model(inputs_embeds=embedded[None]).last_hidden_state[0, -1]
            assert torch.allclose(row, want, atol=1e-5)


def test_chunks_do_not_matter(make_llm, monkeypatch):
    llm = ItemLLM(make_llm("bidirectional")).eval()
    llm.tokenise(TEXTS)
    ids = torch.tensor([3, 1, 0, 2])
    whole = llm(ids)
    monkeypatch.setitem(item_llm.CHUNK_TOKENS, "cpu", 12)
    assert torch.allclose(llm(ids), whole, atol=1e-5)


@pytest.mark.parametrize("training", ["lora", "full"])
def test_gradient_checkpointing_changes_no_gradient(make_llm, training):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        lora = {"rank": 2, "alpha": 4, "dropout": 0.5, "target_modules": "all-linear"}
        llm = ItemLLM(make_llm(), None, training, lora, checkpointing)
        llm.tokenise(TEXTS)
        torch.manual_seed(1)
        (llm(torch.arange(4)) ** 2).sum().backward()
        gradients.append({n: p.grad for n, p in llm.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and "item_token" in gradients[0]
    assert all(torch.allclose(gradients[0][n], g, atol=1e-5) for n, g in gradients[1].items())
    names = [name for name in gradients[0] if name != "item_token"]
    assert names and (training == "full" or all("lora_" in name for name in names))


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
@pytest.mark.parametrize("training", ["lora", "full"])
def test_bfloat16_on_a_cpu(make_llm, monkeypatch, kind, training):
    """Where the CPU has it; states and gradients are those of float32, but for the rounding."""
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"}
    folder, found = make_llm(kind), {}
    for low in (False, True):
        monkeypatch.setattr(item_llm, "_has_bfloat16", lambda device, low=low: low)
        torch.manual_seed(0)
        llm = ItemLLM(folder, None, training, lora)
        llm.tokenise(TEXTS)
        states = llm(torch.arange(4))
        assert states.dtype == torch.float32 and llm.low == low
        (states @ torch.linspace(-1, 1, 16)).sum().backward()
        trained = [p for p in llm.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 for p in trained)  # small steps are not rounded away
        found[low] = states.detach(), llm.item_token.grad
    assert ItemLLM(folder).low is False  # frozen
    error = (found[True][0] - found[False][0]).norm(dim=1) / found[False][0].norm(dim=1)
    assert 0 < error.median() < 0.05 and error.max() < 0.2
    assert torch.cosine_similarity(found[True][1], found[False][1], dim=0) > 0.9


@pytest.mark.parametrize("limit, tokens", [(None, 23), (6, 5)])
def test_long_texts_are_cut_and_reported_once(make_llm, caplog, limit, tokens):
    llm = ItemLLM(make_llm(), limit)  # the model itself has room for 24 tokens
    with caplog.at_level(logging.WARNING):
        llm.tokenise(["red " * 40, "one", "blue " * 30, *["two"] * 5000])
        llm(torch.arange(3))
    assert [len(text) for text in llm.tokens[:3]] == [tokens, 1, tokens]
    (line,) = [record.message for record in caplog.records if "item text" in record.message]
    assert f"2 of 5,003 texts are longer than {tokens} tokens" in line and "has 40" in line


def test_frozen_states_are_computed_once(make_llm, tmp_path, monkeypatch, caplog):
    cache, folder = tmp_path / "cache", make_llm()
    first = frozen_states(folder, TEXTS, 10, cache=cache)
    (file,) = cache.iterdir()

    def loaded(*args, **kwargs):
        raise AssertionError("the LLM was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(item_llm, "ItemLLM", loaded)
        assert torch.equal(frozen_states(folder, TEXTS, 10, cache=cache), first)
        for other in (
            (folder, ["x" + TEXTS[0], *TEXTS[1:]], 10),  # another prompt or text
            (folder, TEXTS, 9),
            (make_llm(seed=1), TEXTS, 10),  # other weights
        ):
            with pytest.raises(AssertionError):
                frozen_states(*other, cache=cache)
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(frozen_states(folder, TEXTS, 10, cache=cache), first)
    assert "damaged" in caplog.text
    assert torch.equal(torch.load(file, weights_only=True), first)


def test_cache_that_cannot_be_written(make_llm, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    states = frozen_states(make_llm(), TEXTS, cache=tmp_path / "file" / "cache")
    assert len(states) == 4 and "are not kept" in caplog.text


def test_the_cache_changes_no_random_number(settings):
    given = settings()
    weights = []
    for _ in range(2):  # the second model finds the states in the cache
        torch.manual_seed(0)
        _, _, model = prepared(given)
        weights.append([*model.state_dict().values()])
    for one, other in zip(*weights, strict=True):
        assert one == other if isinstance(one, dict) else torch.equal(one, other)


def test_hash_is_of_the_contents(make_llm, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(make_llm(), copy)
    assert hash_llm(copy) == hash_llm(make_llm()) != hash_llm(make_llm(seed=1))


@pytest.mark.parametrize(
    "missing, message",
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_incomplete_model_folder(make_llm, tmp_path, missing, message):
    shutil.copytree(make_llm(), tmp_path / "llm")
    (tmp_path / "llm" / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        find_llm(str(tmp_path / "llm"))


def test_damaged_model(make_llm, tmp_path):
    shutil.copytree(make_llm(), tmp_path / "llm")
    (tmp_path / "llm" / "config.json").write_text(json.dumps({"model_type": "no such type"}))
    with pytest.raises(ConfigError, match="cannot be loaded") as error:
        ItemLLM(tmp_path / "llm")
    assert "\n" not in str(error.value)


def test_no_such_model(monkeypatch):
    import huggingface_hub

    def offline(name, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline\nno way")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConfigError, match="no-such/model is no folder, and no model .*offline no"):
        find_llm("no-such/model")
    with pytest.raises(ConfigError, match="item_llm: not set"):
        find_llm(None)


@pytest.mark.parametrize("library, training", [("transformers", "frozen"), ("peft", "lora")])
def test_missing_library_names_the_extra(settings, monkeypatch, library, training):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"{library} is not installed.*recbole-hydra\[llm\]"):
        prepared(settings(llm_training=training))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"item_encoder": "words"}, "item_encoder must be one of id, text, id\\+text"),
        ({"llm_training": "half"}, "llm_training must be one of"),
        ({"llm_training": "lora", "loss_type": "CE"}, "loss_type: CE ranks all items"),
        ({"llm_training": "lora", "lora_rank": 0}, "lora_rank"),
        ({"llm_training": "lora", "lora_target_modules": ["nowhere"]}, "lora_target_modules"),
        ({"item_text_length": 1}, "item_text_length"),
        ({"tie_embeddings": False}, "tie_embeddings"),
        ({"repeat_bias": "item"}, "repeat_bias: item learns a number by item id.*; use shared"),
        ({"item_text_fields": []}, "item_text_fields: it is empty"),
        ({"item_text_fields": ["titles"]}, "did you mean 'title'"),
    ],
)
def test_bad_settings(settings, changes, message):
    with pytest.raises((ConfigError, DatasetError), match=message) as error:
        prepared(settings(**changes))
    assert "\n" not in str(error.value)


# -- Hydra on texts ------------------------------------------------------------------------------


def test_frozen_text_by_hand(settings):
    """The item table is W (state - mean) / deviation, plus E by id, which starts at zero."""
    given = settings(item_encoder="id+text")
    config, train, model = prepared(given)
    states = frozen_states(given["item_llm"], train._dataset.item_text[1:], 128)
    deviation = states.std(0, correction=0)
    want = ((states - states.mean(0)) / deviation) @ model.item_text.projection.weight.T
    assert torch.allclose(model.item_table[1:], want, atol=1e-5)
    assert not model.item_embedding.weight.any()
    with torch.no_grad():
        model.item_embedding.weight[3] += 1.0
    assert torch.allclose(model.item_table[3], want[2] + 1.0, atol=1e-5)
    assert not model.item_table[0].any()
    std = float(model.item_table[1:].detach().std())
    assert 0.3 * config["initializer_range"] < std < 3 * config["initializer_range"]


@pytest.mark.parametrize("loss_type", ["CE", "SampledCE", "gBCE", "BPR"])
def test_a_step_on_some_items_is_the_step_on_all(settings, loss_type):
    """Encoding a batch's own items gives the loss and gradients of the whole table."""
    given = settings(loss_type=loss_type, dropout_prob=0.0, num_negatives=5)
    _, train, model = prepared(given)
    batch = next(iter(train))
    results = []
    for whole in (False, True):
        model.zero_grad()
        torch.manual_seed(0)
        if whole:
            model.items._computed = lambda ids=None, own=model.items._computed: own()
        loss = WindowLoss(model)(batch)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((loss.detach(), gradients))
    assert torch.allclose(results[0][0], results[1][0])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_items_that_are_no_target_take_no_part_in_the_loss(settings):
    """CE is over the items that training rows have for targets, as counted here by hand."""
    _, train, model = prepared(settings(dropout_prob=0.0))
    targets = np.unique(train._dataset.inter_feat["item_id"].numpy())
    assert len(targets) < model.n_items - 1
    states, table = torch.randn(4, 16), model.item_table
    positions = torch.tensor([0, 2, 5, len(targets) - 1])
    want = F.cross_entropy(states @ table[targets].T, positions)
    history = torch.ones(4, 1, dtype=torch.long), torch.arange(4)
    loss = model.target_loss(states, torch.from_numpy(targets)[positions], history)
    assert torch.allclose(loss, want)
    _, _, sampled = prepared(settings(loss_type="SampledCE"))
    drawn = torch.cat([sampled._drawn_negatives(torch.device("cpu"))[0][0] for _ in range(300)])
    assert set(drawn.tolist()) == set(targets.tolist())


def test_what_an_evaluation_keeps_is_not_kept_too_long(settings):
    models = [prepared(settings(seed=seed))[2].eval() for seed in (1, 2)]
    with torch.no_grad():
        before, other = (model.item_table.clone() for model in models)
        models[0].load_state_dict(models[1].state_dict())
        assert not torch.equal(before, other)
        assert torch.equal(models[0].item_table, other)
        assert models[0].double().item_table.dtype == torch.float64


def test_sampled_loss_by_hand(settings):
    _, train, model = prepared(settings(loss_type="SampledCE", num_negatives=7))
    states = torch.randn(3, 16)
    targets = torch.from_numpy(np.unique(train._dataset.inter_feat["item_id"].numpy())[:3])
    torch.manual_seed(0)
    ((items, expected),) = model._drawn_negatives(states.device)
    torch.manual_seed(0)
    want = sampled_cross_entropy(states, model.item_table, targets, items, expected)
    history = torch.ones(3, 1, dtype=torch.long), torch.arange(3)
    assert torch.allclose(model.target_loss(states, targets, history), want)


@pytest.mark.parametrize("training", ["lora", "full"])
def test_only_the_items_of_a_batch_are_encoded(settings, training):
    given = settings(llm_training=training, train_batch_size=12, num_negatives=3)
    config, train, model = prepared(given)
    assert config["loss_type"] == "SampledCE"
    assert any("loss_type: SampledCE" in note for note in config.notes)
    encoded, forward = [], model.item_text.llm.forward

    def record(ids, show_progress=False):
        encoded.append(ids.tolist())
        return forward(ids, show_progress)

    model.item_text.llm.forward = record
    drawn, draw = [], model._drawn_negatives
    model._drawn_negatives = lambda device: drawn.append(draw(device)) or drawn[-1]
    model.train()
    for batch in train:
        encoded.clear()
        drawn.clear()
        WindowLoss(model)(batch).backward()
        (ids,), negatives = encoded, drawn[0][0][0]
        parts = (batch["item_id_list"], batch["item_id"], negatives)
        want = {i for part in parts for i in part.flatten().tolist()} - {0}
        assert sorted(ids) == sorted(want) and len(want) < 26
    gradient = model.item_text.llm.item_token.grad
    assert gradient is not None and gradient.abs().max() > 0


def test_the_llm_draws_no_dropout(settings, make_llm):
    """But LoRA does, where it is asked to."""
    for dropout, same in ((0.0, True), (0.5, False)):
        given = settings(
            llm_training="lora", lora_dropout=dropout, item_llm=make_llm("bidirectional")
        )
        _, _, model = prepared(given)
        assert model.item_text.llm.llm.config.hidden_dropout_prob > 0
        llm = model.train().item_text.llm
        with torch.no_grad():
            for name, weight in llm.named_parameters():
                if "lora_B" in name:
                    weight.normal_()
        ids = torch.tensor([1, 2, 3])
        assert torch.equal(llm(ids), llm(ids)) == same
        assert torch.equal(llm.eval()(ids), llm(ids))


def test_an_evaluation_encodes_the_catalogue_once(settings, monkeypatch):
    encoded = []
    forward = ItemLLM.forward

    def record(self, ids, show_progress=False):
        if not self.training:
            encoded.append(len(ids))
        return forward(self, ids, show_progress)

    given = settings(llm_training="lora", eval_batch_size=64, epochs=3)
    monkeypatch.setattr(ItemLLM, "forward", record)
    run_recbole_hydra("Hydra", "ring", config_dict=given)
    assert encoded == [26] * 5  # the states before training, three validations, the test


@pytest.mark.parametrize("encoder, training", [("text", "frozen"), ("id+text", "lora")])
def test_training_learns_and_saves_no_llm(settings, encoder, training):
    given = settings(item_encoder=encoder, llm_training=training, epochs=12, dropout_prob=0.0)
    result = run_recbole_hydra("Hydra", "ring", config_dict=given)
    losses = [entry["train_loss"] for entry in result["history"]]
    assert losses[-1] < 0.8 * losses[0]
    path = result["best_checkpoint"]
    state = torch.load(path, weights_only=True)["state_dict"]
    names = [name for name in state if name.startswith("item_text.")]
    assert state["item_text._extra_state"] == {
        "name": given["item_llm"],
        "hash": hash_llm(given["item_llm"]),
    }
    llm = [name for name in names if ".llm." in name]
    assert bool(llm) == (training == "lora")
    assert all("lora_" in name or name.endswith("item_token") for name in llm)
    assert "item_text.states" not in names

    model = load_model(path)
    history = ["i3", "i4", "i5"]
    scores = dict(recommend(model, history, k=26))
    assert len(scores) == 26 and {"i24", "i25"} <= set(scores)  # those nobody had, too
    assert recommend(path, history, k=3) == recommend(model, history, k=3)


@pytest.mark.parametrize("training", ["frozen", "lora", "full"])
def test_resume_is_exact(settings, training):
    given = settings(llm_training=training, epochs=4, lora_dropout=0.1)
    whole = run_recbole_hydra("Hydra", "ring", config_dict=given)
    half = run_recbole_hydra("Hydra", "ring", config_dict={**given, "epochs": 2})
    path = half["last_checkpoint"]
    rest = run_recbole_hydra(resume=path, config_dict={"epochs": 4})
    assert rest["test_result"] == whole["test_result"]
    assert [e["train_loss"] for e in rest["history"]] == [e["train_loss"] for e in whole["history"]]


def test_learning_rate_of_the_llm(settings):
    given = settings(llm_training="lora", learning_rate=0.01, llm_learning_rate=0.0, epochs=2)
    with pytest.raises(ConfigError, match="llm_learning_rate must be a positive"):
        run_recbole_hydra("Hydra", "ring", config_dict=given)
    given["llm_learning_rate"] = 1e-12
    result = run_recbole_hydra("Hydra", "ring", config_dict=given)
    state = torch.load(result["best_checkpoint"], weights_only=True)["state_dict"]
    lora_b = [value for name, value in state.items() if "lora_B" in name]
    assert lora_b and all(value.abs().max() < 1e-9 for value in lora_b)  # they start at zero


def test_another_llm_is_refused(settings, make_llm, tmp_path):
    result = run_recbole_hydra("Hydra", "ring", config_dict=settings())
    path = result["best_checkpoint"]
    with pytest.raises(CheckpointError, match="is not the model that the checkpoint was trained"):
        load_model(path, config_dict={"item_llm": make_llm(seed=1)})
    moved = tmp_path / "moved"
    shutil.copytree(make_llm(), moved)
    want = recommend(path, ["i3", "i4"], k=3)
    assert (
        recommend(load_model(path, config_dict={"item_llm": str(moved)}), ["i3", "i4"], 3) == want
    )


def test_other_texts_are_refused(settings, tmp_path):
    result = run_recbole_hydra("Hydra", "ring", config_dict=settings())
    path = tmp_path / "data" / "ring" / "ring.item"
    path.write_text(path.read_text().replace("red one", "green one", 1))
    with pytest.raises(CheckpointError, match="item_text"):
        run_recbole_hydra(resume=result["last_checkpoint"], config_dict={"epochs": 4})


def test_progress_bars(settings, capfd):
    given = settings(llm_training="lora", show_progress=True, epochs=1)
    run_recbole_hydra("Hydra", "ring", config_dict=given)
    shown = capfd.readouterr().err
    assert "Tokenise items" in shown and shown.count("26/26") >= 3


def test_command_line(settings, caplog):
    given = settings(epochs=1)
    argv = [f"--{key}={value}" for key, value in given.items() if key != "item_text_fields"]
    assert main(["--model=Hydra", "--dataset=ring", *argv]) == 0
    assert "Hydra on ring: 1 epochs" in caplog.text


def test_by_id_nothing_is_imported_and_nothing_is_new(run_small, tmp_path):
    code = (
        "import sys; from recbole_hydra import run_recbole_hydra; from conftest import small;"
        "run_recbole_hydra('Hydra', 'tiny', config_dict=small('Hydra', epochs=1), saved=False);"
        "print([m for m in ('transformers', 'tokenizers', 'peft', 'ray') if m in sys.modules])"
    )
    paths = f"{Path(__file__).parent}:{Path(recbole_hydra.__file__).parents[1]}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={"PYTHONPATH": paths, "PATH": "", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.strip().endswith("[]"), done.stderr[-2000:]
    result = run_small("Hydra")
    names = torch.load(result["best_checkpoint"], weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in names} == {
        "item_embedding", "item_norm", "layers", "output_norm", "repeat_bias",
    }  # fmt: skip


def test_a_dataset_without_texts(settings):
    from recbole.data import create_dataset as create_plain

    config = Config("Hydra", "ring", config_dict=settings())
    with pytest.raises(ConfigError, match="the dataset has no texts; make it with create_dataset"):
        config.model_class(config, create_plain(config))


# -- items without interactions ------------------------------------------------------------------


@pytest.mark.parametrize("encoder, training", [("id+text", "frozen"), ("text", "lora")])
def test_add_items(settings, encoder, training):
    """An item that is added with the text of another is scored as that one."""
    given = settings(item_encoder=encoder, llm_training=training)
    model = load_model(run_recbole_hydra("Hydra", "ring", config_dict=given)["best_checkpoint"])
    history = ["i3", "i4"]
    before = dict(recommend(model, history, k=26))
    # i25, which nobody had, has the text "red two" and brand acme.
    add_items(model, {"new": {"title": "red two", "brand": "acme"}, "other": {"title": "grey six"}})
    after = dict(recommend(model, history, k=28))
    assert after["new"] == pytest.approx(before["i25"], abs=1e-5)
    assert {k: after[k] for k in before} == pytest.approx(before, abs=1e-5)
    assert recommend(model, ["new", "i4"], k=1) and len(after) == 28
    if encoder == "text":
        got, want = (dict(recommend(model, [item, "i4"], k=9)) for item in ("new", "i25"))
        assert got == pytest.approx(want, abs=1e-5)


def test_fields_of_new_items_are_those_of_the_file(settings):
    given = settings(item_text_fields=None, epochs=1)
    model = load_model(run_recbole_hydra("Hydra", "ring", config_dict=given)["best_checkpoint"])
    with pytest.raises(DatasetError, match="no 'titel' in .* title, brand; did you mean 'title'"):
        add_items(model, {"new": {"titel": "red one"}})
    add_items(model, {"new": {"brand": None, "title": "red one"}})
    assert model.checkpoint["vocabulary"].item_text[-1] == "Item: title: red one"
    with pytest.raises(DatasetError, match="item 5: it is given twice"):
        add_items(model, {5: {"title": "red one"}, "5": {"title": "red two"}})


def test_texts_may_begin_with_a_quotation_mark_and_be_long(settings, tmp_path):
    config = Config("Hydra", "ring", config_dict=settings())
    path = tmp_path / "data" / "ring" / "ring.item"
    text = path.read_text().replace("red one\t", '"Weird Al" songs\t', 1)
    path.write_text(text.replace("red two\t", f'"{"long " * 40_000}\t', 1))
    dataset = create_dataset(config)
    assert dataset.item_num == 1 + 24 + 2
    assert 'title: "Weird Al" songs' in "".join(dataset.item_text)


@pytest.mark.parametrize(
    "items, message",
    [
        ({"i3": {"title": "red one"}}, "item i3: the model has it already"),
        ({"new": {}}, "item new: it has no text"),
        ({"new": {"title": "  "}}, "item new: it has no text"),
        ({"new": {"titles": "red"}}, "no 'titles' in item_text_fields.*did you mean 'title'"),
    ],
)
def test_items_that_cannot_be_added(settings, items, message):
    path = run_recbole_hydra("Hydra", "ring", config_dict=settings(epochs=1))["best_checkpoint"]
    model = load_model(path)
    with pytest.raises(DatasetError, match=message):
        add_items(model, items)
    with pytest.raises(ConfigError, match="this model has no domains"):
        add_items(model, {"new": {"title": "red"}}, domain="ring")


def test_a_model_by_id_takes_no_new_items(run_small):
    model = load_model(run_small("Hydra")["best_checkpoint"])
    with pytest.raises(ConfigError, match="add_items: takes a model .* text"):
        add_items(model, {"new": {"title": "red"}})
