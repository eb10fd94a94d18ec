"""Filters by columns of the `.item` file: what fits is ranked, exactly, and nothing else."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import small

from recbole_hydra import Recommender, load_model, recommend, run_recbole_hydra
from recbole_hydra.errors import ConfigError, DatasetError

ITEMS = 24
GENRES = ["Comedy", "Comedy Drama", "Drama", ""]


def write(data, name, items=ITEMS, genre="genre"):
    """A ring of items; the last two are not in the .item file."""
    rng = random.Random(items)
    folder = data / name
    folder.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(30):
        first = rng.randrange(items)
        lines += [f"u{user}\ti{(first + n) % items}\t{1000 + n}" for n in range(7)]
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n")
    lines = [f"item_id:token\t{genre}:token_seq\tbrand:token\tyear:float\tsizes:float_seq"]
    for i in range(items - 2):
        year = "" if i == 5 else 1990 + i
        lines.append(f"i{i}\t{GENRES[i % 4]}\t{'acme' if i % 2 else '7'}\t{year}\t1 2")
    lines.append("unknown\tComedy\tacme\t1990\t1")
    (folder / f"{name}.item").write_text("\n".join(lines) + "\n")


def trained(folder, model="Hydra", **changes):
    given = {
        "data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved"), "epochs": 1,
        "MAX_ITEM_LIST_LENGTH": 6, "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        **changes,
    }  # fmt: skip
    dataset = None if "domains" in changes else "films"
    given = small(model, **given)
    return run_recbole_hydra(model, dataset, config_dict=given)["best_checkpoint"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    write(folder / "data", "films")
    return folder


@pytest.fixture(scope="module")
def checkpoint(place):
    return trained(place)


@pytest.fixture(scope="module")
def service(checkpoint):
    with Recommender(checkpoint) as opened:
        yield opened


HISTORY = ["i1", "i2", "i3"]

#: Filters, and which of the items of the file they leave.
FITTING = [
    ({}, None),
    ({"genre": "Comedy"}, lambda i: i % 4 < 2),
    ({"genre": ["Drama", "Western"]}, lambda i: i % 4 in (1, 2)),
    ({"genre": ("Comedy", "Drama")}, lambda i: i % 4 < 3),
    ({"brand": "acme"}, lambda i: i % 2),
    ({"brand": 7}, lambda i: not i % 2),
    ({"item_id": ["i3", "i4"]}, lambda i: i in (3, 4)),
    ({"year": "[1993,1996]"}, lambda i: i in (3, 4, 6)),
    ({"year": "(1993,1996)"}, lambda i: i == 4),
    ({"year": "[1993,1994];[1999,2000)"}, lambda i: i in (3, 4, 9)),
    ({"year": "[2000,inf)"}, lambda i: i >= 10),
    ({"year": "(-inf,inf)"}, lambda i: i != 5),
    ({"year": 1993}, lambda i: i == 3),
    ({"year": "1993"}, lambda i: i == 3),
    ({"year": [1993, np.float32(1996.0)]}, lambda i: i in (3, 6)),
    ({"year": [1993, "[1999,2000]"]}, lambda i: i in (3, 9, 10)),
    ({"genre": "Comedy", "brand": "acme", "year": "[1990,2000]"}, lambda i: i in (1, 9)),
    ({"genre": "Western"}, lambda i: False),
    ({"genre": ""}, lambda i: False),
]


@pytest.mark.parametrize("asked, fits", FITTING, ids=[str(asked) for asked, _ in FITTING])
def test_what_fits_is_ranked_and_nothing_else(service, asked, fits):
    whole = service.recommend_to_history(HISTORY, ITEMS)
    known = [pair for pair in whole if fits is None or int(pair[0][1:]) < ITEMS - 2]
    expected = [pair for pair in known if fits is None or fits(int(pair[0][1:]))]
    got = service.recommend_to_history(HISTORY, 20, filter=asked)
    assert got == expected[:20]
    few = service.recommend_to_history(HISTORY, 2, exclude_history=True, filter=asked)
    assert few == [pair for pair in expected if pair[0] not in HISTORY][:2]


def test_every_way_to_ask(service, checkpoint):
    asked = {"genre": "Comedy"}
    comedies = {f"i{i}" for i in range(ITEMS - 2) if i % 4 < 2}
    one = service.recommend("u1", ITEMS, filter=asked)
    assert {item for item, _ in one} == comedies
    assert service.recommend_many(["u1", "nobody"], ITEMS, filter=asked)[0] == one
    ids, scores = service.best_ids(["u1"], ITEMS, filter=asked)
    assert [str(service.ranking.tokens[i]) for i in ids[0][: len(one)]] == [i for i, _ in one]
    assert (scores[0][len(one) :] == -np.inf).all()
    popular = service.recommend("nobody", ITEMS, filter=asked)
    assert popular.fallback == "popular" and {item for item, _ in popular} == comedies
    both = service.recommend("u1", 5, candidates=["i1", "i2", "i4"], filter=asked)
    assert {item for item, _ in both} == {"i1", "i4"}
    again = recommend(load_model(checkpoint), "u1", ITEMS, filter=asked)
    assert [item for item, _ in again] == [item for item, _ in one]


def test_models_that_score_all_items_themselves(place):
    with Recommender(trained(place, "SASRec")) as service:
        got = service.recommend_to_history(HISTORY, 5, filter={"year": "[2005,inf)"})
    assert {item for item, _ in got} <= {f"i{i}" for i in range(15, ITEMS - 2)} and len(got) == 5


def test_the_file_may_be_elsewhere(checkpoint, place, tmp_path):
    file = tmp_path / "catalogue.item"
    lines = (place / "data/films/films.item").read_text().splitlines()
    file.write_text("\n".join(lines[:4]) + "\n")
    with Recommender(checkpoint, items=file) as service:
        got = service.recommend_to_history(HISTORY, 5, filter={"genre": "Comedy"})
    assert {item for item, _ in got} == {"i0", "i1"}
    got = recommend(checkpoint, HISTORY, 5, filter={"genre": "Comedy"}, items=str(file))
    assert {item for item, _ in got} == {"i0", "i1"}


def test_the_file_is_read_with_the_first_filter(checkpoint, tmp_path):
    with Recommender(checkpoint, items=tmp_path / "later.item") as service:
        assert service.recommend_to_history(HISTORY, 3)
        with pytest.raises(DatasetError, match="later.item cannot be read"):
            service.recommend_to_history(HISTORY, 3, filter={"brand": "acme"})
        (tmp_path / "later.item").write_text("item_id:token\tbrand:token\ni4\tacme\n")
        got = service.recommend_to_history(HISTORY, 3, filter={"brand": "acme"})
        (tmp_path / "later.item").unlink()
        assert service.recommend_to_history(HISTORY, 3, filter={"brand": "acme"}) == got
    assert [item for item, _ in got] == ["i4"]


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domains")
    write(folder / "data", "films")
    write(folder / "data", "books", items=16, genre="kind")
    return folder, trained(folder, domains=["films", "books"])


def test_several_domains_have_their_own_files(domains):
    folder, checkpoint = domains
    with Recommender(checkpoint) as service:
        for domain, asked, expected in (
            ("films", {"brand": "acme"}, {f"films:i{i}" for i in range(1, 22, 2)}),
            ("books", {"brand": "acme"}, {f"books:i{i}" for i in range(1, 14, 2)}),
            ("books", {"kind": "Comedy"}, {f"books:i{i}" for i in range(14) if i % 4 < 2}),
            ("films", {"kind": "Comedy"}, set()),  # a column of books
        ):
            got = service.recommend_to_history(["films:i1"], 15, domain=domain, filter=asked)
            assert {item for item, _ in got} == expected
    files = {name: folder / "data" / name / f"{name}.item" for name in ("films", "books")}
    shutil.copy(files["films"], "f.item")
    with Recommender(checkpoint, items={**files, "films": "f.item"}) as service:
        got = service.recommend_to_history(["films:i1"], 15, filter={"year": 1992})
    assert [item for item, _ in got] == ["films:i2"]
    for wrong in ("f.item", {"films": "f.item"}, {**files, "music": "m"}):
        with pytest.raises(ConfigError, match="items: must be a dict of .item files by domain, fi"):
            Recommender(checkpoint, items=wrong)
    text = files["books"].read_text()
    Path("b.item").write_text(text.replace("year:float", "year:token"))
    with Recommender(checkpoint, items={**files, "books": "b.item"}) as service:
        with pytest.raises(ConfigError, match="year is float in one domain and token in another"):
            service.recommend_to_history(["films:i1"], 5, filter={"year": 1992})


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked, message",
    [
        ("Comedy", "filter must be a dict of columns, such as .*, got 'Comedy'"),
        (["genre"], "filter must be a dict of columns"),
        ({"genres": "Comedy"}, "no column 'genres' in .*; there are .*; did you mean 'genre'"),
        ({5: "Comedy"}, "no column 5 in"),
        ({"genre": None}, "filter: genre is token_seq and takes values, or a list, got None"),
        ({"genre": {"a": 1}}, "filter: genre is token_seq and takes values, or a list, got {"),
        ({"genre": [["Comedy"]]}, "filter: genre is token_seq and takes values, or a list, got"),
        ({"genre": []}, "filter: genre: the list is empty"),
        ({"genre": True}, "filter: genre is token_seq and takes values"),
        ({"brand": 1.5}, "filter: brand is token, whose values are text, got 1.5"),
        ({"brand": "[1,2]"}, "filter: brand is token, and '\\[1,2\\]' an interval, .*brand:float"),
        ({"year": "new"}, "filter: year must be an interval such as '\\[5,inf\\)', got 'new'"),
        ({"year": "[1990,2000"}, "filter: year must be an interval such as"),
        ({"year": "[2000,1990]"}, "filter: year: \\[2000,1990\\] is empty, since 2000 > 1990"),
        ({"year": ""}, "filter: year must be an interval"),
        ({"year": None}, "filter: year is float and takes numbers or intervals, or a list, got No"),
        ({"year": [True]}, "filter: year is float and takes numbers"),
        ({"year": float("nan")}, "filter: year is float, and nan is no number"),
        ({"sizes": 1}, "filter: sizes is float_seq, lists of numbers; filters are for"),
    ],
)  # fmt: skip
def test_filters_that_are_none(service, asked, message):
    with pytest.raises(ConfigError, match=message) as caught:
        service.recommend_to_history(HISTORY, 3, filter=asked)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_used(checkpoint, place):
    for text, message in (
        ("name:token\nx\n", "films?.* has no column item_id, so nothing says which item a line"),
        ("item_id:token\tyear:float\ni1\tnew\n", "line 2: column 'year' is float, and 'new' is"),
        ("item_id:token\tyear:float\ni1\n", "line 2: it has 1 field"),
    ):
        Path("films.item").write_text(text)
        with Recommender(checkpoint, items="films.item") as service:
            with pytest.raises(DatasetError, match=message):
                service.recommend_to_history(HISTORY, 3, filter={"year": 1990})
    with pytest.raises(ConfigError, match="items: must be the path of an .item file, got 5"):
        Recommender(checkpoint, items=5)
    file = place / "data/films/films.item"
    file.rename(place / "away.item")
    try:
        with Recommender(checkpoint) as service:
            with pytest.raises(
                DatasetError, match="filter: there is no .*films.item, .*items=PATH"
            ):
                service.recommend_to_history(HISTORY, 3, filter={"year": 1990})
    finally:
        (place / "away.item").rename(file)
