"""The house as DESIGN draws it: floors, one direction, files that are read in a sitting."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "recbole_hydra"

#: Floors, the lowest first; a room uses what lies below it, and rooms beside it on the same floor
#: as long as no circle comes of it.
FLOORS = (
    {
        "checkpoint", "checks", "compat", "errors", "machine", "metrics", "output_folder",
        "sources", "threads",
    },
    {"ops"},
    {"data", "layers"},
    {"model"},
    {"settings"},
    {"training"},
    {"serving", "quick_start"},
    {"compare", "tune"},
    {"cli"},
)  # fmt: skip

#: The most lines of a file, but for kernels, and of a class.
LONGEST_FILE, LONGEST_CLASS, LONGEST_HYDRA = 400, 250, 250


def modules():
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__"), file, ast.parse(file.read_text(encoding="utf-8"))


MODULES = {name: (file, tree) for name, file, tree in modules()}


def imports(tree, everywhere):
    """The modules of the package that a module imports, at its top, or everywhere in it."""
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("recbole_hydra"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("recbole_hydra"))


def room(module):
    return module.split(".")[1] if "." in module else None


def floor(module):
    return next((i for i, rooms in enumerate(FLOORS) if room(module) in rooms), None)


def test_every_room_has_a_floor():
    assert {room(name) for name in MODULES} - {None} == set().union(*FLOORS)


@pytest.mark.parametrize("name", [name for name in MODULES if room(name)])
def test_a_room_uses_what_lies_below_it(name):
    # What compat puts into RecBole's classes calls the rooms above, once they are used; cli and the
    # rooms of many runs import late what is heavy, and point down, too.
    everywhere = room(name) != "compat"
    for other in imports(MODULES[name][1], everywhere):
        if room(other) is not None:
            assert floor(other) <= floor(name), f"{name} imports {other}"


def test_there_is_no_circle():
    graph = {name: set(imports(tree, False)) - {name} for name, (_, tree) in MODULES.items()}
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_rooms_of_a_floor_do_not_need_each_other_both_ways():
    pairs = {
        (room(name), room(other))
        for name, (_, tree) in MODULES.items()
        for other in imports(tree, False)
        if None not in (room(name), room(other)) and room(name) != room(other)
    }
    assert not [pair for pair in pairs if pair[::-1] in pairs]


@pytest.mark.parametrize("name", MODULES)
def test_files_and_classes_are_read_in_a_sitting(name):
    file, tree = MODULES[name]
    if room(name) != "ops":
        assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < LONGEST_CLASS, node.name


def test_hydra_is_the_paper_s_model_in_one_sitting():
    file, _ = MODULES["recbole_hydra.model.sequential_recommender.hydra"]
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_HYDRA


def test_every_test_is_on_the_map():
    tests = Path(__file__).parent
    text = (tests / "README.md").read_text(encoding="utf-8")
    assert [f.stem for f in tests.glob("test_*.py") if f"`{f.stem}`" not in text] == []
