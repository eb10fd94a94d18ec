"""Every command and Python block of README and docs runs, small; those that do not say why."""

import contextlib
import io
import os
import random
import re
import shlex
from pathlib import Path

import pytest
import torch

from recbole_hydra.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: A block, and the comment before it, if there is one: ``<!-- not run: why -->``.
BLOCK = re.compile(r"(?:<!-- not run: ([^>]+) -->\n+)?^```(bash|python)\n(.*?)^```", re.M | re.S)

#: What makes a block small.
SMALLER = {
    "--seeds=2020,2021,2022": "--seeds=2020",
    "--models=Hydra,Mamba4Rec,SASRec,GRU4Rec": "--models=Hydra,SASRec",
    "--num_samples=20": "--num_samples=1",
    "seeds=[2020, 2021]": "seeds=[2020]",
    "num_samples=6": "num_samples=1",
    '"epochs": 10': '"epochs": 1',
    '"epochs": 5': '"epochs": 1',
    'output_dir="two-models"': 'output_dir="two-models", config_dict={"epochs": 1}',
    '"mine.yaml"]': '"mine.yaml"], config_dict={"epochs": 1}',
}


def blocks():
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        for number, (why, kind, text) in enumerate(BLOCK.findall(page.read_text("utf-8"))):
            yield pytest.param(name, why, kind, text, id=f"{name}-{number}")


def write(folder, name, users, items, seed):
    """A dataset of random interactions, with texts of its items."""
    rng = random.Random(seed)
    (folder / name).mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in users:
        for step in range(rng.randint(5, 12)):
            lines.append(f"{user}\t{rng.choice(items)}\t{rng.randint(1, 5)}\t{1000 + step}")
    lines += [f"{users[0]}\t{item}\t3\t{10 + i}" for i, item in enumerate(items)]
    (folder / name / f"{name}.inter").write_text("\n".join(lines) + "\n")
    lines = ["item_id:token\ttitle:token_seq\tbrand:token"]
    lines += [f"{item}\tred item {i}\tacme" for i, item in enumerate(items)]
    (folder / name / f"{name}.item").write_text("\n".join(lines) + "\n")


@pytest.fixture
def place(tmp_path, make_llm):
    """The folder of a user who follows the pages, and what their placeholders stand for."""
    users, items = (
        [str(n) for n in range(180, 220)],
        [str(n) for n in range(230, 560) if n not in (302, 377)],
    )
    for seed, name in enumerate(("ml-100k", "NAME", "NEW", "amazon-office", "amazon-industrial")):
        write(tmp_path / "dataset", name, users, [*items, "302", "377", "2122"], seed)
    (tmp_path / "mine.yaml").write_text("learning_rate: 0.001\n")
    causal = (ROOT / "docs" / "causal.md").read_text("utf-8")
    (tmp_path / "mymodel.py").write_text(BLOCK.search(causal)[3])
    return {"MODEL": make_llm(), "FOLDER": str(tmp_path / "dataset")}


def run(line, place, **more):
    """Run one line of a shell as a user would, with one epoch."""
    for long, short in SMALLER.items():
        line = line.replace(long, short)
    for word, meaning in place.items():
        line = re.sub(rf"(?<==){word}\b", meaning, line)
    if "<run>" in line:
        newest = max(Path("saved").glob("*.best.pth"), key=os.path.getmtime)
        line = line.replace("<run>", newest.name.removesuffix(".best.pth"))
    program, *argv = shlex.split(line.partition("#")[0])
    assert program == "recbole-hydra"
    given = {argument.partition("=")[0] for argument in argv}
    small = {"--epochs": "1", "--show_progress": "False", "--item_llm_cache": "cache", **more}
    if not given & {"--item_encoder", "--adapt_from"}:
        small.pop("--item_llm_cache")
    if argv[0] in ("recommend", "export"):  # nothing is trained
        small = {"--show_progress": "False"} if argv[0] == "recommend" else {}
    argv += [f"{key}={value}" for key, value in small.items() if key not in given]
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        status = main(argv)
    assert status == 0, f"{line}\n{error.getvalue()[-2000:]}"


def trained_before(page, place):
    """Train what the blocks of a page go on from."""
    text = "--item_encoder=text --item_llm=MODEL --data_path=FOLDER"
    before = {
        "docs/recommend.md": "recbole-hydra --model=Hydra --dataset=ml-100k",
        "docs/live.md": "recbole-hydra --model=Hydra --dataset=ml-100k",
        "docs/export.md": "recbole-hydra --model=Hydra --dataset=ml-100k",
        "docs/resume.md": "recbole-hydra --model=Hydra --dataset=ml-100k",
        "docs/text.md": f"recbole-hydra --model=Hydra --dataset=NAME {text}",
        "docs/domains.md": (
            f"recbole-hydra --model=Hydra --domains=amazon-office,amazon-industrial {text}"
        ),
    }.get(page)
    if before:
        run(before, place)


@pytest.mark.parametrize("page, why, kind, text", blocks())
def test_blocks_run(page, why, kind, text, place, monkeypatch, request):
    if why:
        assert len(why.split()) > 2
        return
    if "tune" in text:
        request.getfixturevalue("local_ray")  # one for all: tune uses what it finds
    trained_before(page, place)
    if kind == "bash":
        for line in text.strip().splitlines():
            run(line, place)
        return
    for long, short in SMALLER.items():
        text = text.replace(long, short)
    if "<run>" in text:
        newest = max(Path("saved").glob("*.best.pth"), key=os.path.getmtime)
        text = text.replace("<run>", newest.name.removesuffix(".best.pth"))
    monkeypatch.setattr("sys.argv", ["script.py"])
    # Where another test has connected this process to Ray, tune uses that connection.
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        file = Path("block.py")  # classes need a source that can be read
        file.write_text(text)
        exec(compile(text, str(file.absolute()), "exec"), {"__name__": "__main__"})


def test_every_setting_has_a_line_of_reference():
    import importlib.util

    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = hooks.settings_page()
    for name in hooks.PROPERTIES.values():
        for line in (ROOT / "properties" / name).read_text(encoding="utf-8").splitlines():
            key = re.match(r"^([\w-]+)\s*:", line)
            assert key is None or f"| `{key[1]}` |" in text, line


@pytest.mark.parametrize(
    "page",
    sorted(
        p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    ),
)
def test_links_lead_somewhere_in_a_checkout(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(
        r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", text, flags=re.S)
    ):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert ((ROOT / page).parent / target).exists(), target
