"""The command line: ``recbole-hydra``, also ``python run_recbole_hydra.py``."""

import sys

from recbole_hydra.errors import RecBoleHydraError

USAGE = """\
usage: recbole-hydra --model=NAME --dataset=NAME [--key=value ...]

Train a model (Hydra, Mamba4Rec, or any of RecBole's) and print its validation and test metrics.

  --model=NAME           Hydra, Mamba4Rec, SASRec, GRU4Rec, Pop, ...
  --dataset=NAME         ml-100k (comes with RecBole), or one in data_path
  --data_path=FOLDER     where FOLDER/NAME/NAME.inter is; default: dataset
  --config_files=A,B     yaml files, later ones over earlier ones
  --resume=FILE          continue a killed run from its .last.pth
  --saved=False          write no checkpoints
  --key=value            any setting of RecBole or of the model: --epochs=50, --topk=10,20

Settings and their defaults: properties/ of recbole_hydra, and RecBole's documentation.
"""


def main(argv=None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit status: 0, or 2 after an error in the input, which is printed as one line.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if argv else 2
    try:
        train(argv)
    except RecBoleHydraError as error:
        print(f"recbole-hydra: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("recbole-hydra: interrupted; --resume=FILE.last.pth continues", file=sys.stderr)
        return 130
    return 0


def train(argv: list[str]) -> dict:
    """Run the job of the plain command: one model on one dataset; returns its result."""
    from recbole_hydra.config import parse_arguments, parse_list, parse_value
    from recbole_hydra.errors import ConfigError
    from recbole_hydra.quick_start import run_recbole_hydra

    if not argv[0].startswith("-"):
        raise ConfigError(f"command line: unknown command {argv[0]!r}; see recbole-hydra --help")
    arguments = parse_arguments(argv)
    processes = {key: arguments.pop(key, "1") for key in ("nproc", "world_size")}
    if any(number not in ("1", "-1") for number in processes.values()):
        raise ConfigError("nproc, world_size: runs of several processes are not supported")
    return run_recbole_hydra(
        model=arguments.pop("model", None),
        dataset=arguments.pop("dataset", None),
        config_file_list=parse_list(arguments.pop("config_files", "")),
        saved=parse_value(arguments.pop("saved", "True")),
        resume=arguments.pop("resume", None),
        argv=[f"--{key}={value}" for key, value in arguments.items()],
    )


if __name__ == "__main__":
    sys.exit(main())
