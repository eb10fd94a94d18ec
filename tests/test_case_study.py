"""RecBole's case study and load_data_and_model on our files and on every loader."""

import subprocess
import sys

import numpy as np
import pytest
import recbole.quick_start
import recbole.utils.case_study
import torch
from conftest import small
from recbole.utils.case_study import full_sort_scores, full_sort_topk

from recbole_hydra.errors import CheckpointError, DatasetError
from recbole_hydra.training.run import train

WAYS = [
    ("Hydra", {}),
    ("Hydra", {"carry_state": True}),
    ("Hydra", {"training_mode": "augmentation"}),
    ("SASRec", {}),
    ("BERT4Rec", {"n_layers": 1, "inner_size": 16}),
    ("FPMC", {}),
    ("BPR", {}),
    ("BPR", {"repeatable": False}),
    ("Pop", {}),
    ("EASE", {}),
    ("DMF", {}),
]
SAMPLED = {"eval_args": {"mode": "uni50"}}
TINY = {"epochs": 1, "embedding_size": 8}


def users_tested(loaders, number):
    """Users with a row in validation and test."""
    rows = [set(loader._dataset.inter_feat["user_id"].tolist()) for loader in loaders[1:]]
    return np.array(sorted(rows[0] & rows[1])[2 : 2 + number])


def scores_of_trainer(run, loader, user):
    """What RecBole ranks for a user of a full-ranking loader."""
    uid = run.data.dataset.uid_field
    run.trainer.model.eval()
    for batch in loader:
        with torch.no_grad():
            rows, scores, _, _ = run.trainer._full_sort_batch_eval(batch)
        mine = (rows[uid] == user).nonzero()
        if len(mine):
            return scores[int(mine)]
    raise AssertionError(f"no row of user {user}")


def trained(model, dataset="tiny", **changes):
    changes = {k: v for k, v in {**TINY, **changes}.items() if k != "embedding_size" or model in (
        "BPR", "FPMC")}  # fmt: skip
    run = train(model, dataset, config_dict=small(model, **changes), saved=False)
    run.trainer.evaluate(run.loaders[2], load_best_model=False)
    return run


@pytest.mark.parametrize("model, changes", WAYS)
def test_scores_are_those_that_are_ranked(model, changes):
    run = trained(model, **changes)
    users = users_tested(run.loaders, 3)[::-1].copy()
    for loader in run.loaders[1:]:
        scores = full_sort_scores(users, run.trainer.model, loader)
        expected = torch.stack([scores_of_trainer(run, loader, user) for user in users])
        torch.testing.assert_close(scores, expected.view_as(scores), atol=1e-5, rtol=1e-4)
        values, items = full_sort_topk(users.tolist(), run.trainer.model, loader, k=5)
        assert items.shape == (3, 5) and (items > 0).all()
        torch.testing.assert_close(values, scores.gather(1, items))


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_a_loader_of_sampled_items_ranks_all(model):
    run = trained(model, **SAMPLED, repeatable=model == "SASRec")
    full = trained(model, repeatable=model == "SASRec")
    full.trainer.model.load_state_dict(run.trainer.model.state_dict())
    users = users_tested(full.loaders, 2)
    torch.testing.assert_close(
        full_sort_scores(users, run.trainer.model, run.loaders[2]),
        full_sort_scores(users, full.trainer.model, full.loaders[2]),
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip


def test_with_domains_only_the_targets_domain_is_ranked(make_ring):
    path = make_ring("first", items=10, users=16)
    make_ring("second", items=14, users=18, seed=1)
    settings = small("Hydra", data_path=path, domains=["first", "second"], epochs=1)
    run = train("Hydra", config_dict=settings, saved=False)
    users = run.data.dataset.token2id("user_id", ["second:u3", "first:u2"])
    run.trainer.evaluate(run.loaders[2], load_best_model=False)
    scores = full_sort_scores(users, run.trainer.model, run.loaders[2])
    start = run.data.dataset.domains.start
    assert torch.isfinite(scores[0, start[1] :]).all() and torch.isfinite(scores[1, 1:11]).all()
    assert not torch.isfinite(scores[0, :11]).any() and not torch.isfinite(scores[1, 11:]).any()


def test_models_that_score_item_by_item(make_ring):
    path = make_ring("ring", items=12)
    changes = {"data_path": path, "metrics": ["NDCG"], "valid_metric": "NDCG@10", "topk": [10]}
    changes.update(load_col={"inter": ["user_id", "item_id", "timestamp"],
                             "item": ["item_id", "brand"]},
                   eval_args={"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
                   train_neg_sample_args={"distribution": "uniform", "sample_num": 1})  # fmt: skip
    run = trained("FM", "ring", **changes)
    scores = full_sort_scores([4, 2], run.trainer.model, run.loaders[2])
    assert scores.shape == (2, 13)
    expected = scores_of_trainer(run, run.loaders[2], 2)
    torch.testing.assert_close(scores[1], expected, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_scored_is_one_line_that_names_ours(make_dataset):
    rows = [(f"u{u}", f"i{(u + n) % 9}", n) for u in range(12) for n in range(6)]
    path = make_dataset("short", [*rows, ("alone", "i1", 1)])
    run = trained("SASRec", "short", data_path=path)
    model, test = run.trainer.model, run.loaders[2]
    alone = run.data.dataset.token2id("user_id", "alone")
    with pytest.raises(DatasetError, match="user 'alone' .* no row in this data.*recommend"):
        full_sort_topk([1, alone], model, test, 3)
    with pytest.raises(DatasetError, match="not a WindowLoader; recbole_hydra.recommend"):
        full_sort_topk([1], model, run.loaders[0], 3)
    for wrong in ([0], [99], [-1], ["u1"], [1.5]):
        with pytest.raises(DatasetError, match=r"internal ids in 1 .. 13, got .*token2id"):
            full_sort_scores(wrong, model, test)
    general = trained("BPR", "short", data_path=path)
    with pytest.raises(DatasetError, match="not a TrainDataLoader"):
        full_sort_scores([1], general.trainer.model, general.loaders[0])


@pytest.mark.parametrize("model", ["Hydra", "Pop", "EASE"])
def test_recboles_load_data_and_model_reads_our_files(run_small, model):
    result = run_small(model, epochs=1)
    load = recbole.quick_start.load_data_and_model
    config, loaded, dataset, *loaders = load(model_file=result["best_checkpoint"])
    users = users_tested(loaders, 2)
    assert type(loaded).__name__ == config["model"] == model
    values, _ = recbole.utils.case_study.full_sort_topk(users, loaded, loaders[2], k=5)
    assert values.shape == (2, 5) and dataset.item_num == loaded.n_items


def test_a_file_of_recboles_own_is_one_line(tmp_path):
    torch.save({"config": Thing()}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="refused, nothing was run"):
        recbole.quick_start.load_data_and_model(str(tmp_path / "other.pth"))


class Thing:
    pass


@pytest.mark.parametrize(
    "imports",
    [
        "import recbole.quick_start, recbole.utils.case_study, recbole_hydra",
        "import sys, recbole_hydra; assert 'ray' not in sys.modules; "
        "import recbole.quick_start, recbole.utils.case_study",
    ],
)
def test_the_order_of_imports_does_not_matter(imports):
    code = (
        f"{imports}\n"
        "import sys, recbole_hydra.data.case_study as ours\n"
        "assert recbole.utils.case_study.full_sort_topk is ours.full_sort_topk\n"
        "import recbole.quick_start as front\n"
        "assert front.load_data_and_model is front.quick_start.load_data_and_model\n"
        "assert front.load_data_and_model.__module__ == 'recbole_hydra'\n"
        "from recbole_hydra.compat.imports import _finder\n"
        "assert not {'recbole.utils.case_study', 'recbole.quick_start.quick_start'} & "
        "set(_finder.waiting)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
