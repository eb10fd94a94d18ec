"""The command line: ``recbole-hydra``, also ``python run_recbole_hydra.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from recbole_hydra.cli.runs import COMPARE_USAGE, TUNE_USAGE, compare, train, tune
from recbole_hydra.cli.serving import (
    EXPORT_USAGE,
    RECOMMEND_USAGE,
    SERVE_USAGE,
    export,
    recommend,
    serve,
)
from recbole_hydra.errors import RecBoleHydraError

USAGE = """\
usage: recbole-hydra --model=NAME --dataset=NAME [--key=value ...]
       recbole-hydra compare --help
       recbole-hydra tune --help
       recbole-hydra recommend --help
       recbole-hydra serve --help
       recbole-hydra export --help

Train a model (Hydra, Mamba4Rec, or any of RecBole's) and print its validation and test metrics.

  --model=NAME           Hydra, Mamba4Rec, SASRec, GRU4Rec, Pop, ...
  --dataset=NAME         ml-100k (comes with RecBole), or one in data_path
  --data_path=FOLDER     where FOLDER/NAME/NAME.inter is; default: dataset
  --domains=A,B          several datasets at once, instead of --dataset
  --item_encoder=text    Hydra: what items are is what their texts say; --item_llm=FOLDER
  --adapt_from=FILE      Hydra on text: start from a model of other datasets
  --config_files=A,B     yaml files, later ones over earlier ones
  --resume=FILE          continue a killed run from its .last.pth
  --saved=False          write no checkpoints
  --key=value            any setting of RecBole or of the model: --epochs=50, --topk=10,20

Settings and their defaults: properties/ of recbole_hydra, and RecBole's documentation.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit status: 0; 1 where no run of a comparison came to an end; or 2 after an error in
        the input, which is printed as one line.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if argv else 2
    if argv == ["--version"]:
        from recbole_hydra import __version__

        print(__version__)
        return 0
    command: Callable[[list[str]], Any] = train
    hint = "--resume=FILE.last.pth continues"
    if argv[0] in _JOBS:
        command, usage, hint = _JOBS[argv[0]]
        argv = argv[1:]
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(usage, end="")
            return 0 if argv else 2
    try:
        done = command(argv)
    except RecBoleHydraError as error:
        print(f"recbole-hydra: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"recbole-hydra: interrupted; {hint}", file=sys.stderr)
        return 130
    return 1 if command is compare and not any(map(done.finished, done.datasets)) else 0


#: By name: what runs, its usage, and what to say after an interruption.
_JOBS: dict[str, tuple[Callable[[list[str]], Any], str, str]] = {
    "compare": (
        compare, COMPARE_USAGE, "the report is of what is finished; --resume=True continues"
    ),
    "tune": (tune, TUNE_USAGE, "the report is of what is finished; --resume=True continues"),
    "recommend": (recommend, RECOMMEND_USAGE, "--resume=True continues"),
    "serve": (serve, SERVE_USAGE, "what was asked before is answered"),
    "export": (export, EXPORT_USAGE, "nothing was written"),
}  # fmt: skip
