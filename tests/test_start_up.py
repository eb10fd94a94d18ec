"""What is imported when: nobody waits for torch and RecBole who does not use them."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DATASETS

import recbole_hydra
from recbole_hydra import Config
from recbole_hydra.errors import ConfigError
from recbole_hydra.model import MODELS
from recbole_hydra.settings.known_keys import PROPERTIES, RECBOLE, keys_of_yaml, read_keys

HEAVY = {"numpy", "pandas", "torch", "ray", "numba", "scipy", "recbole.config", "recbole.data"}

#: Every model that can be named.
NAMES = sorted(MODELS) + [
    node.name
    for file in sorted((RECBOLE / "model").glob("*_recommender/*.py"))
    for node in ast.parse(file.read_text(encoding="utf-8")).body
    if isinstance(node, ast.ClassDef) and node.name.lower() == file.stem
    and "exlib" not in file.parent.name
]  # fmt: skip


def printed(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments, status, line",
    [
        (["--help"], 0, ""),
        (["compare", "--help"], 0, ""),
        (["tune", "--help"], 0, ""),
        (["recommend", "--help"], 0, ""),
        (["export", "--help"], 0, ""),
        (["export", "--checkpoint=x"], 2, "export: --output is missing"),
        (["recommend", "--checkpoint=x", "--output=y", "--k=0"], 2, "k must be a positive integer"),
        ([], 2, ""),
        (["frobnicate"], 2, "unknown command 'frobnicate'; see recbole-hydra --help"),
        (["--model=Hydra", "--epochs"], 2, "--epochs has no value"),
        (
            ["--model=Hydra", "--dataset=ml-100k", "--hiden_size=3"], 2,
            "command line: unknown key 'hiden_size'; did you mean 'hidden_size'?",
        ),
        (
            ["--model=BPR", "--dataset=tiny", "--learning_rat=1"], 2,
            "command line: unknown key 'learning_rat'; did you mean 'learning_rate'?",
        ),
        (["--model=SASRec", "--dataset=x", "--device=cpu"], 2, "computed key 'device'"),
        (
            ["--model=SASRec", "--dataset=x", "--resum=y"], 2,
            "unknown key 'resum'; did you mean 'resume'?",
        ),
        (
            ["compare", "--models=SASRec,Hydra", "--dataset=x,y", "--output_dir=o", "--epoch=1"],
            2, "command line: unknown key 'epoch'; did you mean 'epochs'?",
        ),
        (
            ["compare", "--models=Hydra", "--dataset=x", "--output_dir=o", "--see=1"], 2,
            "command line: unknown key 'see'; did you mean 'seed'?",
        ),
        (
            ["tune", "--model=Hydra", "--dataset=x", "--output_dir=o", "--num_sample=3"], 2,
            "command line: unknown key 'num_sample'; did you mean 'num_samples'?",
        ),
        (["tune", "--dataset=x", "--output_dir=o"], 2, "tune: --model is missing; see"),
        (["tune", "--models=A", "--dataset=x"], 2, "--model is missing, but --models is given"),
        (["compare", "--model=A"], 2, "compare: --models is missing, but --model is given; see"),
        (["--modle=Hydra", "--dataset=x"], 2, "model: not given, but --modle is given; pass"),
        (["--model=Hydra", "--datset=x"], 2, "dataset: not given, but --datset is given; pass"),
        (["--model=Hydra"], 2, "dataset: not given; pass --dataset=NAME, or dataset= in Python"),
        (["--version"], 0, ""),
        (["compare", "--models=BPR", "--dataset=x"], 2, "compare: --output_dir is missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_answers_that_import_nothing_heavy(arguments, status, line):
    code = (
        "import json, sys\n"
        "from run_recbole_hydra import main\n"
        "status = main()\n"
        "print(json.dumps([status, sorted(sys.modules)]))\n"
    )
    _, out, error = printed(code, *arguments)
    got, modules = json.loads(out.splitlines()[-1])
    assert got == status and not HEAVY & set(modules)
    assert line in error and len(error.splitlines()) <= 1


@pytest.mark.parametrize("dataset", ["ml-100k", "tiny"])
@pytest.mark.parametrize("model", NAMES)
def test_the_keys_of_a_run_are_known_before_it_is_imported(model, dataset):
    """What the command line says of a key is what Config would."""
    config = Config(model, dataset, config_dict={"data_path": str(DATASETS)})
    early = read_keys(model, dataset)
    for key in ("hiden_size", "epoch", "gpu", "n_head", "llm_trainin", "device", "eval_setting"):
        assert early.problem(key) == config.unread_key(key), key
    for key in {*config.final_config_dict, *keys_of_yaml(PROPERTIES / "model" / "Hydra.yaml")}:
        assert early.problem(key) == config.unread_key(key), key


def test_models_that_cannot_be_found_by_name_are_left_to_config():
    assert read_keys("sasrec", "tiny") is None
    assert read_keys("Hydr", "tiny") is None
    assert read_keys("StateSpaceRecommender", "tiny") is None


def test_a_config_file_s_error_comes_before_a_mistyped_key(tmp_path):
    """As Config reads them: files first."""
    from recbole_hydra.cli import main

    file = tmp_path / "mine.yaml"
    file.write_text("hiden_size: 3\n")
    with pytest.raises(ConfigError, match="mine.yaml: unknown key 'hiden_size'"):
        Config("Hydra", "tiny", [str(file)], argv=["--learning_rat=1"])
    assert main(["--model=Hydra", "--dataset=tiny", f"--config_files={file}", "--epoch=1"]) == 2


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, recbole_hydra; print(sorted({HEAVY!r} & set(sys.modules)), *dir())"
    _, out, _ = printed(code)
    assert out.startswith("[]")


def test_a_run_does_not_import_the_compiler():
    """torch.compile's takes longer than all of torch."""
    code = "import sys, recbole_hydra.training.run; print('torch._dynamo' in sys.modules)"
    assert printed(code)[1].strip() == "False"


def test_every_public_name_is_there():
    assert set(recbole_hydra.__all__) <= set(dir(recbole_hydra))
    for name in recbole_hydra.__all__:
        assert getattr(recbole_hydra, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Hidra'"):
        recbole_hydra.Hidra  # noqa: B018


#: RecBole's classes, used by a script that imports the package first, last, or in between.
SCRIPTS = {
    "first": "import recbole_hydra\nfrom recbole.trainer import Trainer\n{rest}",
    "last": "from recbole.trainer import Trainer\n{rest}import recbole_hydra\n",
    "between": "import recbole.sampler\nimport recbole_hydra\nfrom recbole.trainer import Trainer\n"
    "{rest}",
}


@pytest.mark.parametrize("order", SCRIPTS)
def test_recboles_classes_are_mended_whenever_they_are_imported(order):
    rest = (
        "from recbole.data.dataset import Dataset, SequentialDataset\n"
        "from recbole.sampler import Sampler\n"
        "from recbole.evaluator import Evaluator\n"
        "from recbole.config import Config\n"
        "import recbole.model.sequential_recommender\n"
    )
    check = (
        "import recbole_hydra\n"
        "names = [Trainer.fit, Dataset.__init__, SequentialDataset._benchmark_presets, "
        "Sampler.get_used_ids, Evaluator.evaluate]\n"
        "assert all(hasattr(f, '__wrapped__') for f in names)\n"
        "assert not any(hasattr(f.__wrapped__, '__wrapped__') for f in names)\n"
        "import numpy, torch; numpy.float_, numpy.unicode_\n"
        "print(torch.is_anomaly_enabled())"
    )
    status, out, error = printed(SCRIPTS[order].format(rest=rest) + check)
    assert (status, out.strip()) == (0, "False"), error


def test_anomaly_mode_of_the_user_s_stays():
    code = (
        "import recbole_hydra, torch\n"
        "torch.autograd.set_detect_anomaly(True)\n"
        "import recbole.model.sequential_recommender\n"
        "print(torch.is_anomaly_enabled())"
    )
    assert printed(code)[1].strip() == "True"


def test_keys_of_yaml_files_are_what_yaml_reads():
    import yaml
    from recbole.config import Config as RecBoleConfig

    loader = RecBoleConfig._build_yaml_loader(None)
    for folder in (RECBOLE / "properties", PROPERTIES):
        for file in Path(folder).rglob("*.yaml"):
            with open(file, encoding="utf-8") as stream:
                read = yaml.load(stream, Loader=loader) or {}
            assert keys_of_yaml(file) == set(read), file
