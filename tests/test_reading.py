"""Atomic files that cannot be read as what they say: one line, with file, line and remedy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import small
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recbole_hydra import Config
from recbole_hydra.data import create_dataset
from recbole_hydra.data.atomic_files import check_file, read_columns
from recbole_hydra.errors import ConfigError, DatasetError, RecBoleHydraError

COLUMNS = ("user_id:token", "item_id:token", "timestamp:float")
ROWS = [(f"u{u}", f"i{(u + t) % 7}", t) for u in range(5) for t in range(6)]


def text(separator="\t", columns=COLUMNS, rows=ROWS, end="\n", quote=""):
    lines = [columns, *rows]
    return "".join(
        separator.join(f"{quote}{field}{quote}" for field in line) + end for line in lines
    )


@pytest.fixture
def write(tmp_path):
    """Write bytes, or text, as a file of dataset x; returns data_path."""

    def write(data, suffix="inter"):
        folder = tmp_path / "data" / "x"
        folder.mkdir(parents=True, exist_ok=True)
        data = data.encode() if isinstance(data, str) else data
        (folder / f"x.{suffix}").write_bytes(data)
        return str(folder.parent)

    return write


def load(path, model="Hydra", **changes):
    return create_dataset(Config(model, "x", config_dict=small(model, data_path=path, **changes)))


def named(prefix):
    return [(u, prefix + i, t) for u, i, t in ROWS]


@pytest.mark.parametrize(
    "prefix, encoding, likely",
    [
        ("café", "latin-1", "latin-1"),
        ("“quoted”", "cp1252", "cp1252"),
        ("中文商品", "gbk", "gb18030"),
        ("中文", "utf-16", "utf-16"),
        ("a", "utf-16", "utf-16"),
        ("a", "utf-16-le", "utf-16-le"),
        ("a", "utf-16-be", "utf-16-be"),
        ("a", "utf-32", "utf-32"),
        ("a", "utf-8-sig", "utf-8-sig"),
    ],
)
@pytest.mark.parametrize("suffix", ["inter", "item"])
def test_a_wrong_encoding_names_the_right_one(write, prefix, encoding, likely, suffix):
    """With the encoding that is suggested, the file is read."""
    path = write(text(rows=named(prefix)).encode(encoding))
    changes = {}
    if suffix == "item":
        path = write(text(rows=named("i")))
        items = [(f"ii{n}", prefix) for n in range(7)]
        write(text(columns=("item_id:token", "name:token"), rows=items).encode(encoding), "item")
        changes = {"load_col": {"inter": [c.split(":")[0] for c in COLUMNS], "item": "*"}}
    with pytest.raises(DatasetError, match=rf"x.{suffix}.*encoding.*{likely}$") as raised:
        load(path, **changes)
    assert "\n" not in str(raised.value)
    if suffix == "inter":
        assert str(load(path, encoding=likely).field2id_token["item_id"][1]) == prefix + "i0"


@pytest.mark.parametrize("line", [1, 2, 17, 31])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_line_of_a_byte_is_named(write, line, end):
    lines = text(end=end).encode().splitlines(keepends=True)
    lines[line - 1] = b"\xe9" + lines[line - 1]
    with pytest.raises(DatasetError, match=f"x.inter, line {line}: byte 0xe9 is not utf-8"):
        load(write(b"".join(lines)))


@pytest.mark.parametrize(
    "encoding, message",
    [
        ("utf9", "encoding must be a text encoding .*got 'utf9'; did you mean 'utf-8'"),
        ("latin", None),
        ("klingon", "encoding must be a text encoding such as utf-8 .*, got 'klingon'"),
        (5, "encoding must be a text encoding .*, got 5"),
        ("ascii", None),
        ("utf-16", "x.inter, line 1: the text is not utf-16 .*perhaps utf-8"),
    ],
)
def test_words_for_an_encoding(write, encoding, message):
    path = write(text())
    if message is None:
        assert len(load(path, encoding=encoding).inter_feat) == len(ROWS)
    else:
        with pytest.raises(RecBoleHydraError, match=message):
            load(path, encoding=encoding)


def first_line(header, rows=ROWS):
    return f"{header}\n" + text(rows=rows).split("\n", 1)[1]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "x.inter is empty; its first line names columns and types"),
        ("\n" + text(), "x.inter, line 1: it is empty"),
        (text(rows=[]), "x.inter has no interactions below its first line"),
        (text(rows=[])[:-1], "x.inter has no interactions below its first line"),
        (text(rows=[]) + "\n\n", "x.inter has no interactions below its first line"),
        (text().split("\n", 1)[1], "column 'u0' of .*x.inter, line 1, has the type ''; .*before i"),
        (first_line("user_id\titem_id\ttimestamp"), "'user_id' of .* has the type ''"),
        (first_line("user_id:token\titem_id\ttimestamp:float"), "'item_id' of .* the type ''"),
        (first_line("user_id:tokn\titem_id:token\tt:float"), "type 'tokn'; .*mean 'token'"),
        (first_line("user_id:int\titem_id:token\tt:float"), "type 'int'; .*one of token, float"),
        (first_line("user_id: token\titem_id:token\tt:float"), "type ' token'; .*mean 'token'"),
        (first_line(":token\titem_id:token\tt:float"), "':token' has no name"),
        (first_line("user_id:token\tuser_id:token\ttimestamp:float"), "two columns 'user_id'"),
        (first_line("user_id:token\titem_id:token\titem_id:float"), "two columns 'item_id'"),
        (text(quote='"'), 'line 1: "user_id:token" is in quotes'),
        (text(quote="'"), "line 1: 'user_id:token' is in quotes"),
        (text(",", quote='"'), 'line 1: "user_id:token"'),
        (text(rows=[(f'"{u}"', f'"{i}"', t) for u, i, t in ROWS]), "every user_id is in quotes"),
        (text(rows=[(u, f"'{i}'", t) for u, i, t in ROWS]), "every item_id .*, as 'i0' in line 2"),
        (text(",", rows=[(u, f'"{i},x"', t) for u, i, t in ROWS]), "line 1: .*set it to ','"),
    ],
)  # fmt: skip
def test_first_lines_and_quotes(write, data, message):
    with pytest.raises(DatasetError, match=message) as raised:
        load(write(data))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("separator", [",", ";", "|", "||", " ", "::", "\t", "@"])
def test_separators(write, separator):
    path = write(text(separator))
    if separator != "\t":
        with pytest.raises(DatasetError) as raised:
            load(path)
        message = f"not separated by field_separator, '\\t'; set it to {separator!r}"
        assert message in str(raised.value)
    assert len(load(path, field_separator=separator).inter_feat) == len(ROWS)


def test_separators_that_are_none(write):
    path = write(text())
    assert len(load(path, field_separator="\\t").inter_feat) == len(ROWS)
    with pytest.raises(
        ConfigError, match="field_separator must be the character between columns, got ''"
    ):
        load(path, field_separator="")


@pytest.mark.parametrize(
    "line, message",
    [
        ("u1\ti1", "it has 2 fields, the first line names 3, user_id, item_id, timestamp"),
        ("u1\ti1\t5\t7", "it has 4 fields"),
        ("u1\ti1\t5\t", "it has 4 fields"),
        ("u1,i1,5", "it has 1 field, .*; this line seems to be by ','"),
        ("u1 i1 5", "it has 1 field, .*; this line seems to be by ' '"),
        ('u1\t"i\t1"\t5', "it has 4 fields, .* between quotes"),
        ("u1", "it has 1 field"),
    ],
)
@pytest.mark.parametrize("at", [2, 9, 32])
def test_lines_with_other_numbers_of_fields(write, line, message, at):
    lines = text().splitlines()
    lines.insert(at - 1, line)
    with pytest.raises(DatasetError, match=f"x.inter, line {at}: {message}"):
        load(write("\n".join(lines) + "\n"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_blank_lines_and_ends_are_none_of_a_users_business(write, end):
    data = text(end=end) + end + "  " + end + text(end=end).split(end, 1)[1].rstrip(end)
    assert len(load(write(data)).inter_feat) == 2 * len(ROWS)


@pytest.mark.parametrize("value", ["-", "—", "x1", "1,000", "3.5.1", "#N/A"])
@pytest.mark.parametrize("suffix, model", [("inter", "Hydra"), ("item", "SASRec"), ("user", "BPR")])
def test_a_number_that_is_none(write, value, suffix, model):
    path = write(text())
    ids = {"inter": "item_id", "item": "item_id", "user": "user_id"}[suffix]
    columns = [f"{ids}:token", "price:float"]
    rows = [(f"{ids[0]}{n}", value if n == 3 else "NA" if n else 1.5) for n in range(5)]
    if suffix == "inter":
        columns, rows = [*COLUMNS, "price:float"], [(*row, price) for row, (_, price) in
                                                   zip(ROWS, rows, strict=False)]  # fmt: skip
    write(text(columns=columns, rows=rows), suffix)
    changes = {"train_neg_sample_args": None} if model == "SASRec" else {}
    message = f"x.{suffix}, line 5: column 'price' is float, and '{value}' is not a number"
    with pytest.raises(DatasetError, match=message):
        load(path, model, load_col=None, **changes)


def test_lists_of_numbers(write):
    path = write(text())
    columns = ("item_id:token", "prices:float_seq")
    write(text(columns=columns, rows=[("i1", "1 2"), ("i2", ""), ("i3", "1 x")]), "item")
    with pytest.raises(
        DatasetError, match="x.item, line 4: column 'prices' is float_seq, and '1 x"
    ):
        load(path, load_col=None)


@pytest.mark.parametrize("suffix, key", [("item", "item_id"), ("user", "user_id")])
@pytest.mark.parametrize(
    "columns, rows, message",
    [
        (("ID:token", "t:token"), [("a", "b")], "has no column"),
        (("KEY:float", "t:token"), [("1", "b")], "is float; in its first line, write"),
        (("KEY:token", "t:token"), [], "has nothing below its first line"),
        (("KEY:token", "t:token", "t:token"), [("a", "b", "c")], "two columns 't'"),
        (("KEY:token", "t:token"), [("a",)], "line 2: it has 1 field"),
        (("KEY:token", "t:text"), [("a", "b")], "the type 'text'"),
        (("KEY:token", "t:token"), [('"a"', "b")], "is in quotes"),
    ],
)
def test_files_of_items_and_users(write, suffix, key, columns, rows, message):
    path = write(text())
    columns = [column.replace("KEY", key) for column in columns]
    write(text(columns=columns, rows=rows), suffix)
    with pytest.raises(DatasetError, match=f"x.{suffix}.*({message})"):
        load(path, load_col=None)
    load(path)  # they are not loaded: nobody asked for them


def test_what_is_loaded_of_a_file(write):
    path = write(text())
    write(text(columns=("item_id:token", "title:token"), rows=[("i1", "x")]), "item")
    wanted = {"inter": "*", "item": ["item_id", "titel"]}
    with pytest.raises(DatasetError, match="no column 'titel', .*did you mean 'title'"):
        load(path, load_col=wanted)
    with pytest.raises(DatasetError, match="'item_id' is not loaded; add it to load_col"):
        load(path, load_col={**wanted, "item": ["title"]})


def test_the_texts_of_items_are_read_with_the_same_words(write):
    from recbole_hydra.data.item_text import read_item_texts

    path = write(text())
    write("item_id:token\ttitle:token\ni1\tcaf\xe9\n".encode("latin-1"), "item")
    made = Config("Hydra", "x", config_dict=small("Hydra", data_path=path))
    with pytest.raises(DatasetError, match="x.item, line 2: byte 0xe9 is not utf-8"):
        read_item_texts(made)


def test_a_file_that_changes_is_looked_at_again(write):
    path = write(text())
    load(path)
    write(text() + "u1\ti1\n")
    with pytest.raises(DatasetError, match="line 32: it has 2 fields"):
        load(path)


@settings(max_examples=80, deadline=None)
@given(
    fields=st.lists(
        st.lists(
            st.text(st.characters(blacklist_characters="\t\n\r\0", codec="utf-8"), max_size=6),
            min_size=1, max_size=4,
        ),
        min_size=1, max_size=8,
    ),
    width=st.integers(2, 4),
    encoding=st.sampled_from(["utf-8", "utf-16", "gb18030", "utf-8-sig"]),
)  # fmt: skip
@example(fields=[["\x85"], ["", ""]], width=2, encoding="utf-8")
@example(fields=[["\xa0"], [" "], ["a", "b"]], width=2, encoding="utf-8")
def test_any_text_is_read_or_its_line_is_named(tmp_path_factory, fields, width, encoding):
    """Every line has the fields of the first, and is read as it stands, or is named."""
    path = tmp_path_factory.mktemp("text") / "x.item"
    header = "\t".join(f"c{n}:token" for n in range(width))
    lines = ["\t".join(row) for row in fields]
    path.write_bytes("\n".join([header, *lines, ""]).encode(encoding))
    config = {"dataset": "x", "encoding": encoding, "field_separator": "\t"}
    # What has no separator and no other sign is a blank line, which is passed over.
    kept = [(n, row) for n, row in enumerate(fields, 2) if len(row) > 1 or row[0].strip(" ")]
    wrong = [n for n, row in kept if len(row) != width]
    if wrong:
        with pytest.raises(DatasetError, match=f"x.item, line {wrong[0]}: it has"):
            check_file(config, path)
        return
    assert list(check_file(config, path)) == [f"c{n}" for n in range(width)]
    if kept:
        assert read_columns(config, path).to_numpy().tolist() == [row for _, row in kept]


def test_on_the_command_line_the_line_is_all(write, tmp_path):
    path = write(text(rows=named("café")).encode("latin-1"))
    done = subprocess.run(
        [sys.executable, "-m", "recbole_hydra.cli", "--model=Hydra", "--dataset=x",
         f"--data_path={path}", "--state=ERROR"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("recbole-hydra: error: dataset x: ")
