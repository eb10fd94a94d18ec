"""What is installed: RecBole beside our dependencies, and what is said where it is missing."""

import configparser
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from recbole_hydra.compat.installing import require_recbole

ROOT = Path(__file__).parents[1]
REMEDY = "pip install --no-deps recbole==1.2.1"
COMMAND = "import sys, run_recbole_hydra; sys.exit(run_recbole_hydra.main())"
MISSING = "import sys; sys.modules['recbole'] = None; "


def run(code, *arguments):
    command = [sys.executable, "-c", MISSING + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--models=Hydra"]], ids=" ".join)
def test_without_recbole_the_command_prints_one_line(arguments):
    done = run(COMMAND, *arguments)
    line = f"recbole-hydra: error: RecBole is missing; install it with: {REMEDY}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_without_recbole_an_import_ends_in_that_line_and_no_other_error():
    done = run("import recbole_hydra")
    line = f"ModuleNotFoundError: RecBole is missing; install it with: {REMEDY}"
    assert done.returncode == 1
    assert re.findall(r"^\w+Error.*", done.stderr, re.MULTILINE) == [line]


@pytest.mark.parametrize("version", ["1.2.0", "1.2.1.post1", "1.3.0", "", None])
def test_another_recbole_is_refused_in_one_line(version, monkeypatch):
    other = ModuleType("recbole")
    if version is not None:
        other.__version__ = version
    monkeypatch.setitem(sys.modules, "recbole", other)
    with pytest.raises(ImportError) as caught:
        require_recbole()
    line = str(caught.value)
    assert line.startswith("RecBole 1.2.1 is needed") and REMEDY in line and "\n" not in line
    assert caught.value.name == "recbole" and (version or "of no version") in line


def test_what_recbole_lacks_is_not_called_recbole(tmp_path, monkeypatch):
    (tmp_path / "recbole").mkdir()
    (tmp_path / "recbole" / "__init__.py").write_text("import not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "recbole")
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_there'"):
        require_recbole()


def our_requirements(python_version):
    """Name -> specifiers of what pip installs with us on a version of Python."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    found = {}
    for line in setup["options"]["install_requires"].splitlines():
        if line and not line.startswith("#"):
            one = Requirement(line)
            if not one.marker or one.marker.evaluate({"python_version": python_version}):
                found.setdefault(one.name, []).append(one.specifier)
    return found


def test_every_package_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = [x for x in setup["options"]["packages"].split("\n") if x and not x.startswith("#")]
    files = (ROOT / "recbole_hydra").rglob("__init__.py")
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in files}
    assert sorted(listed) == sorted(found | {"recbole_hydra.properties"})


@pytest.mark.parametrize("python_version", ["3.10", "3.11", "3.12", "3.13"])
def test_what_recbole_needs_is_what_we_need(python_version):
    """It is installed with --no-deps, so all of it has to come with us."""
    ours = our_requirements(python_version)
    for needed in map(Requirement, requires("recbole")):
        if needed.marker is None:
            assert needed.name in ours
            if "==" in str(needed.specifier):
                assert ours[needed.name] == [needed.specifier]
    assert "recbole" not in ours and all(len(each) == 1 for each in ours.values())


def test_the_first_line_of_the_readme_installs_what_the_command_asks_for():
    first = re.search(r"```bash\n(.*)\n```", (ROOT / "README.md").read_text())[1]
    assert f"pip install . && {REMEDY} && recbole-hydra " in first
