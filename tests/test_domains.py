"""Several domains: the joint dataset, its training and evaluation, adapting to a new one."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small

from recbole_hydra import (
    Config,
    Recommender,
    add_items,
    load_data_and_model,
    load_model,
    recommend,
    run_recbole_hydra,
)
from recbole_hydra.cli import main
from recbole_hydra.data import create_dataset, prepare_data, split_dataset
from recbole_hydra.data.domains import Domains
from recbole_hydra.data.windows import tempered
from recbole_hydra.errors import (
    CheckpointError,
    ComparisonError,
    ConfigError,
    DatasetError,
    RecBoleHydraError,
    TuneError,
)
from recbole_hydra.training.adapt import part_of
from recbole_hydra.training.run import train
from recbole_hydra.training.window_loss import WindowLoss


@pytest.fixture
def settings(make_ring, make_llm, tmp_path):
    """Settings of Hydra on two rings, "office" of 24 items (2 more without interactions) and
    "tools" of 12 (1 more); the same raw ids are in both."""

    def make(model="Hydra", text=False, **changes):
        given = {"domains": ["office", "tools"], "data_path": str(tmp_path / "data")}
        if not (tmp_path / "data").exists():
            make_ring("office", items=24, cold=2, users=40)
            make_ring("tools", items=12, cold=1, users=15, seed=1)
        if text:
            given |= {
                "item_encoder": "text",
                "item_llm": make_llm(),
                "item_text_fields": ["title", "brand"],
                "item_llm_cache": str(tmp_path / "cache"),
                "num_negatives": 6,
            }
        return small(model, **{**given, **changes})

    return make


def joint(settings, model="Hydra"):
    return create_dataset(Config(model, config_dict=settings))


# -- the joint dataset ---------------------------------------------------------------------------


def test_ids_are_namespaced(settings):
    dataset = joint(settings(rank_all_items=True))
    users, items = (dataset.field2id_token[name] for name in ("user_id", "item_id"))
    assert dataset.item_num == 1 + 26 + 13 and dataset.user_num == 1 + 40 + 15
    assert dataset.domains == Domains(("office", "tools"), (1, 27, 40))
    assert all(token.startswith("office:") for token in items[1:27])
    assert all(token.startswith("tools:") for token in items[27:])
    assert {"office:i3", "tools:i3"} <= set(items) and {"office:u3", "tools:u3"} <= set(users)
    assert dataset.domains.of(torch.tensor([1, 26, 27, 39])).tolist() == [0, 0, 1, 1]


def test_interactions_are_those_of_the_domains(settings, tmp_path):
    frame = joint(settings()).inter_feat
    assert len(frame) == sum(
        len((tmp_path / "data" / name / f"{name}.inter").read_text().splitlines()) - 1
        for name in ("office", "tools")
    )
    dataset = joint(settings())
    items = dataset.field2id_token["item_id"][frame["item_id"]]
    users = dataset.field2id_token["user_id"][frame["user_id"]]
    for name in ("office", "tools"):
        raw = pd.read_csv(tmp_path / "data" / name / f"{name}.inter", sep="\t", dtype=str)
        mine = [i for i, user in enumerate(users) if user.startswith(f"{name}:")]
        assert [users[i] for i in mine] == [f"{name}:{u}" for u in raw["user_id:token"]]
        assert [items[i] for i in mine] == [f"{name}:{i}" for i in raw["item_id:token"]]
        times = frame["timestamp"].to_numpy()[mine]
        assert np.array_equal(times, raw["timestamp:float"].astype(float))


def test_a_domain_has_its_own_fields_and_filters(settings, make_ring, tmp_path):
    make_ring("books", names=("reader", "book"), seed=3)
    make_ring("office", items=24, users=40)
    own = {
        "books": {"USER_ID_FIELD": "reader", "ITEM_ID_FIELD": "book"},
        "office": {"user_inter_num_interval": "[7,inf)"},
    }
    given = {"domains": ["books", "office"], "domain_settings": own}
    dataset = joint({**settings(), **given})
    alone = create_dataset(
        Config("Hydra", "office", config_dict={**settings(domains=None), **own["office"]})
    )
    assert len(alone.inter_feat) < 40 * 5 * 1.5  # the filter does something
    counts = [int((dataset.inter_feat["item_id"] < 25).sum()), len(dataset.inter_feat)]
    assert counts[1] - counts[0] == len(alone.inter_feat)
    assert dataset.field2id_token["item_id"][1].startswith("books:")


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"domains": ["office", "office"]}, ConfigError, "domains: office is listed twice"),
        ({"domains": []}, ConfigError, "domains must be a list"),
        ({"domains": ["office", "ofice"]}, DatasetError, "dataset ofice: .*did you mean 'office'"),
        ({"dataset": "office"}, ConfigError, "dataset, domains: both are given"),
        ({"domain_settings": {"offices": {}}}, ConfigError, "'offices' is not among.*'office'"),
        (
            {"domain_settings": {"office": {"learning_rate": 1}}},
            ConfigError,
            "domain_settings: learning_rate of office: .* set it for all",
        ),
        (
            {"domain_settings": {"office": {"data_path": "x"}}},
            ConfigError,
            "domain_settings: data_path of office",
        ),
        ({"domain_temperature": 0.5}, ConfigError, "domain_temperature must be .* at least 1"),
        ({"domain_temperature": "hot"}, ConfigError, "domain_temperature must be a number"),
        ({"domain_temperature": 2, "carry_state": True}, ConfigError, "domain_temperature: above"),
        (
            {"domain_temperature": 2, "training_mode": "augmentation"},
            ConfigError,
            "domain_temperature: above",
        ),
        ({"loss_type": "BPR"}, ConfigError, "negatives from all domains"),
        ({"user_model": "per_domain", "merge_users": True}, ConfigError, "one user model"),
        ({"user_model": "each"}, ConfigError, "user_model must be one of"),
        ({"eval_args": {"mode": "uni10"}}, ConfigError, "ranked among all items of its domain"),
    ],
)
def test_bad_domains(settings, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        run_recbole_hydra("Hydra", config_dict=settings(**changes))
    assert "\n" not in str(caught.value)


def test_both_on_the_command_line(capsys):
    assert main(["--model=Hydra", "--dataset=tiny", "--domains=a,b"]) == 2
    assert "dataset, domains: both are given" in capsys.readouterr().err


# -- one timeline for a user of several domains --------------------------------------------------


def test_merged_users_have_one_timeline(settings, tmp_path):
    dataset = joint(settings(merge_users=True))
    assert dataset.user_num == 1 + 40  # u0 .. u14 are in both
    config = Config("Hydra", config_dict=settings(merge_users=True))
    data = prepare_data(config)
    names = data.dataset.field2id_token
    user = list(names["user_id"]).index("u3")
    start, stop = data.histories["start"][user : user + 2].tolist()
    got = [names["item_id"][i] for i in data.histories["items"][start:stop].tolist()]
    events = []
    for name in ("office", "tools"):
        for line in (tmp_path / "data" / name / f"{name}.inter").read_text().splitlines()[1:]:
            who, item, time = line.split("\t")
            if who == "u3":
                events.append((float(time), f"{name}:{item}"))
    assert got == [item for _, item in sorted(events)]
    assert {item.split(":")[0] for item in got} == {"office", "tools"}


def test_merging_needs_times_and_common_users(settings, make_ring, tmp_path):
    given = settings(merge_users=True)
    make_ring("steps", positions=True)
    with pytest.raises(DatasetError, match="timestamp of domain steps is the position .*1, 2, 3"):
        joint({**given, "domains": ["office", "steps"]})
    joint({**given, "domains": ["office", "steps"], "merge_users": False})
    path = tmp_path / "data" / "tools" / "tools.inter"
    path.write_text(path.read_text().replace("\nu", "\nv"))
    with pytest.raises(DatasetError, match="no user id of office, tools occurs in two"):
        joint(given)


def test_merged_users_train(settings):
    result = run_recbole_hydra("Hydra", config_dict=settings(merge_users=True))
    assert "ndcg@10 tools" in result["test_result"]


# -- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature, share", [(1, 0.9), (2, 0.75), (1e9, 0.5)])
def test_temperature(temperature, share):
    """Of 900 and 100 targets: 9 to 1 at T = 1, 3 to 1 at T = 2, even at infinity."""
    targets = np.tile([2, 4], 500)[: 300 + 34]
    domain = np.repeat([0, 1], [300, 34])
    targets[:300], targets[300:] = 3, 3
    targets[-1] = 1
    total = np.bincount(domain, weights=targets)
    assert total.tolist() == [900, 100]
    generator = torch.Generator().manual_seed(0)
    drawn = [tempered(domain, targets, temperature, generator) for _ in range(5)]
    for which in drawn:
        assert len(np.unique(which)) == len(which)
        got = np.bincount(domain[which], weights=targets[which])
        assert got[1] == 100 and abs(got[0] / got.sum() - share) < 0.01
    assert (temperature == 1) == np.array_equal(drawn[0], drawn[1])


def test_batches_mix_domains(settings):
    config = Config("Hydra", config_dict=settings(domain_temperature=1e9, train_batch_size=60))
    loader, *_ = split_dataset(config, create_dataset(config))
    domains = loader._dataset.domains
    targets = {0: 0, 1: 0}
    mixed = 0
    assert len(loader) == len(list(loader))
    for batch in loader:
        items = batch["item_id"][batch["item_id"] > 0]
        found = domains.of(items)
        mixed += len(found.unique()) == 2
        for index in (0, 1):
            targets[index] += int((found == index).sum())
    assert mixed >= 1 and abs(targets[0] - targets[1]) <= 8


def test_temperature_of_one_domain_draws_all(settings):
    given = settings(domain_temperature=4, dataset="tools")
    del given["domains"]
    config = Config("Hydra", config_dict=given)
    loader, *_ = split_dataset(config, create_dataset(config))
    assert sum(int((batch["item_id"] > 0).sum()) for batch in loader) == int(loader.is_target.sum())


# -- training and evaluation ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, changes",
    [
        ("Hydra", {}),
        ("Hydra", {"user_model": "per_domain"}),
        ("Hydra", {"training_mode": "augmentation"}),
        ("Mamba4Rec", {}),
        ("SASRec", {"train_neg_sample_args": None}),
        ("Pop", {}),
    ],
)
def test_metrics_are_of_each_domain_and_their_mean(settings, model, changes):
    """Against ranks computed here, from the model's scores, among the items of the domain."""
    changes = {**changes, "epochs": 1}
    given = {k: v for k, v in settings(model, **changes).items() if model != "Pop" or k in (
        "data_path", "domains", "epochs", "show_progress")}  # fmt: skip
    run = train(model, config_dict=given, saved=False)
    result = run.trainer.evaluate(run.loaders[2], load_best_model=False)
    domains = run.data.dataset.domains
    hits = {name: [] for name in domains.names}
    with torch.no_grad():
        for batch in run.loaders[2]:
            rows, _, _, targets = batch
            scores = run.trainer.model.eval().full_sort_predict(rows).view(len(rows), -1)
            for row, target in zip(scores, targets.tolist(), strict=True):
                index = int(domains.of(torch.tensor(target)))
                start, stop = domains.ranges()[index]
                rank = int((row[start:stop] > row[target]).sum()) + 1
                hits[domains.names[index]].append(rank <= 10)
    for name, values in hits.items():
        # Equal scores, as Pop's, may be ranked either way.
        slack = 1e-4 if model != "Pop" else 0.5
        assert result[f"hit@10 {name}"] == pytest.approx(np.mean(values), abs=slack)
    mean = np.mean([result[f"hit@10 {name}"] for name in domains.names])
    assert result["hit@10"] == pytest.approx(mean, abs=1e-4)


def test_the_loss_is_within_domains(settings):
    """Cross-entropy of each target over its domain's items, by torch, by hand."""
    config = Config("Hydra", config_dict=settings(dropout_prob=0.0))
    loader, *_ = split_dataset(config, create_dataset(config))
    model = config.model_class(config, loader._dataset)
    states, targets = torch.randn(3, 16), torch.tensor([5, 30, 7])
    table = model.item_embedding.weight
    want = [
        -torch.log_softmax(states[i] @ table[start:stop].T, 0)[target - start]
        for i, (target, (start, stop)) in enumerate(
            zip(targets.tolist(), [(1, 25), (25, 37), (1, 25)], strict=True)
        )
    ]
    loss = model.target_loss(states, targets, (torch.ones(3, 1, dtype=torch.long), torch.arange(3)))
    assert torch.allclose(loss, torch.stack(want).mean(), atol=1e-5)


def test_user_models_per_domain(settings):
    """A row goes through its own domain's layers, and trains no others."""
    config = Config("Hydra", config_dict=settings(user_model="per_domain", dropout_prob=0.0))
    loader, *_ = split_dataset(config, create_dataset(config))
    model = config.model_class(config, loader._dataset)
    items = torch.tensor([[1, 2, 3], [30, 31, 0], [4, 5, 6], [26, 27, 28]])
    keep = torch.tensor([2, 4, 8, 9])
    states = model.encode(items)
    assert torch.allclose(model.encode(items, keep=keep), states.flatten(0, 1)[keep], atol=1e-6)
    both = model.layers
    for rows, layers in (([0, 2], both[0]), ([1, 3], both[1])):
        model.layers = layers
        assert torch.allclose(model.encode(items[rows]), states[rows], atol=1e-6)
    model.layers = both
    model.encode(items[[0, 2]]).sum().backward()
    assert all(p.grad is not None for p in both[0].parameters())
    assert all(p.grad is None for p in both[1].parameters())
    # The state carried from a first part to a second.
    whole = [0, 2, 3]  # rows without padding
    first, state = model.encode(items[whole, :2], model.initial_state(3))
    second, _ = model.encode(items[whole, 2:], state)
    assert torch.allclose(torch.cat([first, second], 1), states[whole], atol=1e-5)


def test_carry_state_over_domains(settings):
    given = settings(user_model="per_domain", carry_state=True, MAX_ITEM_LIST_LENGTH=3)
    assert "ndcg@10 tools" in run_recbole_hydra("Hydra", config_dict=given)["test_result"]


@pytest.mark.parametrize("changes", [{}, {"text": True, "llm_training": "lora"}])
def test_resume_and_reload(settings, changes):
    given = settings(user_model="per_domain", domain_temperature=2, epochs=4, **changes)
    whole = run_recbole_hydra("Hydra", config_dict=given)
    half = run_recbole_hydra("Hydra", config_dict={**given, "epochs": 2})
    rest = run_recbole_hydra(resume=half["last_checkpoint"], config_dict={"epochs": 4})
    assert rest["test_result"] == whole["test_result"]
    config, model, dataset, *_, test = load_data_and_model(whole["best_checkpoint"])
    assert dataset.domains.names == ("office", "tools") and len(test) >= 2


def test_recommend_within_a_domain(settings):
    path = run_recbole_hydra("Hydra", config_dict=settings(text=True))["best_checkpoint"]
    model = load_model(path)
    got = recommend(model, "tools:u3", k=13)
    assert len(got) == 13 and all(item.startswith("tools:") for item, _ in got)
    got = recommend(model, "tools:u3", k=5, domain="office")
    assert all(item.startswith("office:") for item, _ in got)
    with pytest.raises(ConfigError, match="k must be in 1 .. 13"):
        recommend(model, "tools:u3", k=14)
    with pytest.raises(ConfigError, match="domain must be one of office, tools"):
        recommend(model, "tools:u3", domain="books")
    with pytest.raises(DatasetError, match="'u3' is not in"):
        recommend(model, "u3")


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("user_model", ["shared", "per_domain"])
@pytest.mark.parametrize("carry", [False, True])
def test_live_users_within_domains(settings, text, user_model, carry):
    """Streaming is what recommend says of the whole history, whichever domain it begins in."""
    given = settings(text=text, user_model=user_model, carry_state=carry, MAX_ITEM_LIST_LENGTH=4)
    model = load_model(run_recbole_hydra("Hydra", config_dict=given)["best_checkpoint"])
    with Recommender(model) as service:
        had = {"a": [], "b": [], "tools:u3": service.history("tools:u3")}
        for step in range(8):
            for user, domain in (("a", "office"), ("b", "tools"), ("tools:u3", "tools")):
                had[user].append(f"{domain}:i{step % 11}")
                service.observe(user, had[user][-1])
        for user, history in had.items():
            for domain in (None, "office", "tools"):
                where = domain or history[-1].partition(":")[0]
                k = {"office": 24, "tools": 12}[where] + text * {"office": 2, "tools": 1}[where]
                got = dict(service.recommend(user, k, domain=domain))
                assert got == pytest.approx(
                    dict(recommend(model, history, k, domain=domain)), abs=1e-5
                )
        assert {i.split(":")[0] for i, _ in service.recommend("new", 4, domain="tools")} == {
            "tools"
        }
        with pytest.raises(ConfigError, match="domain must be one of office, tools"):
            service.recommend("a", 3, domain="books")


def test_add_items_to_a_domain(settings):
    """An item with the text of another domain's is no copy of it; the others keep their scores."""
    given = settings(text=True, item_encoder="id+text", user_model="per_domain")
    model = load_model(run_recbole_hydra("Hydra", config_dict=given)["best_checkpoint"])
    before = {name: dict(recommend(model, f"{name}:u3", k=13)) for name in ("office", "tools")}
    add_items(model, {"new": {"title": "grey six"}}, domain="office")
    add_items(model, {"new": {"title": "grey six"}}, domain="tools")
    for name, number in (("office", 27), ("tools", 14)):
        after = dict(recommend(model, f"{name}:u3", k=number))
        assert f"{name}:new" in after and len(after) == number
        assert {k: after[k] for k in before[name]} == pytest.approx(before[name], abs=1e-5)
    with pytest.raises(ConfigError, match="domain must be one of office, tools, got None"):
        add_items(model, {"newer": {"title": "red"}})


# -- comparisons and sweeps ----------------------------------------------------------------------


def test_compare(settings, capsys, tmp_path):
    given = settings(text=True, epochs=1)
    argv = [f"--{k}={v}" for k, v in given.items() if k not in ("domains", "show_progress")]
    argv += ["--domains=office,tools", "--show_progress=False", "--output_dir=compared"]
    assert main(["compare", "--models=Hydra,SASRec", *argv]) == 0
    assert "not comparable" not in capsys.readouterr().out
    results = pd.read_csv("compared/results.csv")
    assert (results["status"] == "ok").all() and len(results) == 3
    folder = tmp_path / "compared" / "runs" / "office+tools"
    for model in ("Hydra", "SASRec", "Pop"):
        run = json.loads((folder / model / "seed-2020" / "result.json").read_text())
        assert run["fingerprint"]["candidates"] == 39  # all rank those nobody had
        table = pd.read_parquet(folder / model / "seed-2020" / "ranks.parquet")
        assert set(table["domain"]) == {"office", "tools"}
        assert table.groupby("domain")["rank"].max()["tools"] <= 13
    report = (tmp_path / "compared" / "report.md").read_text()
    assert "| model | office NDCG@10 | office Hit@10 | tools NDCG@10 | tools Hit@10 |" in report
    with pytest.raises(ComparisonError, match="dataset, domains: both are given"):
        from recbole_hydra.compare import compare

        compare(["Hydra"], ["office"], config_dict={"domains": ["office"]})


def test_tune(settings, local_ray):
    from recbole_hydra.tune import tune

    given = settings(text=True, epochs=1)
    for key in ("show_progress", "learning_rate"):
        del given[key]
    sweep = tune(
        "Hydra", None, {"learning_rate": [0.01, 0.001]}, "sweep", num_samples=1,
        max_concurrent=1, config_dict=given, show_progress=False,
    )  # fmt: skip
    assert {"ndcg@10", "ndcg@10 office", "ndcg@10 tools"} <= set(sweep.test_result)
    again = run_recbole_hydra("Hydra", config_file_list=["sweep/best.yaml"])
    assert sweep.test_result == again["test_result"]


def test_tune_needs_data(capsys):
    assert main(["tune", "--model=Hydra", "--output_dir=x"]) == 2
    assert "--dataset is missing" in capsys.readouterr().err
    assert issubclass(TuneError, RecBoleHydraError)


# -- adapting to a new domain --------------------------------------------------------------------


@pytest.fixture
def learned(settings, make_ring):
    """(checkpoint of a model of two domains, settings of a third)."""

    def make(**changes):
        given = settings(text=True, llm_training="lora", epochs=2, **changes)
        path = run_recbole_hydra("Hydra", config_dict=given)["best_checkpoint"]
        make_ring("books", items=18, seed=5, cold=1)
        own = {
            "data_path": given["data_path"], "epochs": 2, "show_progress": False,
            "learning_rate": 0.01, "num_negatives": 6, "MAX_ITEM_LIST_LENGTH": 12,
            "train_batch_size": 256, "item_text_fields": ["title", "brand"], "adapt_from": path,
        }  # fmt: skip
        return path, own

    return make


@pytest.mark.parametrize(
    "chosen", [["hydra"], ["lora"], ["lora", "projection", "hydra"], ["projection"]]
)
def test_only_the_chosen_parts_are_trained(learned, chosen):
    path, own = learned()
    run = train("Hydra", "books", config_dict={**own, "adapt": chosen})
    before = torch.load(path, weights_only=True)["state_dict"]
    after = torch.load(run.result["best_checkpoint"], weights_only=True)["state_dict"]
    assert before.keys() == after.keys()
    changed = {
        part_of(n)
        for n, x in after.items()
        if isinstance(x, torch.Tensor) and (x != before[n]).any()
    }
    assert changed == set(chosen)
    trainable = {part_of(n) for n, p in run.trainer.model.named_parameters() if p.requires_grad}
    assert trainable == set(chosen)
    count = sum(p.numel() for p in run.trainer.model.parameters() if p.requires_grad)
    assert run.result["parameters"]["total"] == count
    assert run.config["hidden_size"] == 16 and run.config["lora_rank"] == 8
    assert run.config["loss_type"] == ("SampledCE" if "lora" in chosen else "CE")


def test_zero_shot_is_the_checkpoint_as_it_is(learned, caplog):
    """The metrics before training are those of the loaded model on the new domain's texts."""
    path, own = learned()
    run = train("Hydra", "books", config_dict={**own, "epochs": 0})
    zero = run.result["zero_shot"]
    again = run.trainer.evaluate(run.loaders[2], load_best_model=False)
    assert zero["test"] == dict(again) and set(zero) == {"valid", "test"}
    state = torch.load(path, weights_only=True)["state_dict"]
    for name, value in run.trainer.model.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, state[name]), name
    argv = [f"--{key}={value}" for key, value in own.items() if key != "item_text_fields"]
    assert main(["--model=Hydra", "--dataset=books", *argv]) == 0
    assert "test, before training" in caplog.text


def test_resuming_an_adaptation(learned):
    _, own = learned()
    own |= {"adapt": ["lora"], "epochs": 4}
    whole = run_recbole_hydra("Hydra", "books", config_dict=own)
    half = run_recbole_hydra("Hydra", "books", config_dict={**own, "epochs": 2})
    rest = run_recbole_hydra(resume=half["last_checkpoint"], config_dict={"epochs": 4})
    assert rest["test_result"] == whole["test_result"]
    assert rest["parameters"] == whole["parameters"] and "zero_shot" not in rest


def test_layers_of_a_domain_go_where_they_belong(learned):
    path, own = learned(user_model="per_domain")
    before = torch.load(path, weights_only=True)["state_dict"]
    settings = {**own, "epochs": 0, "missing_item_text": None}
    tools = train("Hydra", "tools", config_dict=settings).trainer.model.state_dict()
    assert torch.equal(tools["layers.0.W_X.weight"], before["layers.1.0.W_X.weight"])
    books = train("Hydra", "books", config_dict=settings).trainer.model.state_dict()
    assert not any(
        torch.equal(books["layers.0.W_X.weight"], before[f"layers.{i}.0.W_X.weight"])
        for i in (0, 1)
    )
    both = {**settings, "domains": ["books", "tools"], "user_model": "per_domain"}
    both = train("Hydra", config_dict=both).trainer.model.state_dict()
    assert torch.equal(both["layers.1.0.W_X.weight"], before["layers.1.0.W_X.weight"])


def test_what_is_kept_by_id_goes_with_its_items(learned):
    path, own = learned(item_encoder="id+text")
    state = torch.load(path, weights_only=True)
    names = state["vocabulary"]["item"]
    run = train("Hydra", "tools", config_dict={**own, "epochs": 0})
    new = train("Hydra", "books", config_dict={**own, "epochs": 0}).trainer.model
    for name in ("item_embedding.weight", "repeat_bias.item_weight"):
        table = run.trainer.model.get_parameter(name)
        for token in ("i3", "i7"):
            row = run.data.dataset.token2id("item_id", token)
            want = state["state_dict"][name][names.index(f"tools:{token}")]
            assert torch.equal(table[row], want) and want.any()
        assert not new.get_parameter(name).any() and new.get_parameter(name).requires_grad


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"adapt": ["layers"]}, ConfigError, "adapt must be one of lora, projection, hydra"),
        ({"adapt": []}, ConfigError, "adapt: name at least one"),
        ({"llm_training": "frozen", "adapt": ["lora"]}, ConfigError, "nothing of the LLM is"),
        ({"hidden_size": 32}, CheckpointError, "leave the model's sizes as they were"),
        ({"adapt_from": "no.pth"}, CheckpointError, "no such checkpoint"),
    ],
)
def test_adaptations_that_cannot_be(learned, changes, error, message):
    _, own = learned()
    with pytest.raises(error, match=message) as caught:
        run_recbole_hydra("Hydra", "books", config_dict={**own, **changes})
    assert "\n" not in str(caught.value)


def test_a_model_by_id_cannot_be_adapted(run_small):
    path = run_small("Hydra", epochs=1)["best_checkpoint"]
    with pytest.raises(ConfigError, match="adapt_from: .*knows its items by their ids"):
        run_small("Hydra", adapt_from=path)


def test_a_step_of_a_joint_model_on_text(settings):
    """The loss of a mixed batch is finite and reaches every part."""
    config = Config("Hydra", config_dict=settings(text=True, llm_training="lora"))
    loader, *_ = split_dataset(config, create_dataset(config))
    model = config.model_class(config, loader._dataset).train()
    loss = WindowLoss(model)(next(iter(loader)))
    loss.backward()
    reached = {part_of(n) for n, p in model.named_parameters() if p.grad is not None}
    assert torch.isfinite(loss) and reached == {"lora", "projection", "hydra"}
