"""Train a model: ``python run_recbole_hydra.py --model=Hydra --dataset=ml-100k``.

Installed, it is the command ``recbole-hydra``.
"""

import sys


def main() -> int:
    """Run the command line; without RecBole, say in one line how to install it. Exit status."""
    try:
        from recbole_hydra.cli import main as run
    except ImportError as error:
        if error.name != "recbole":
            raise
        print(f"recbole-hydra: error: {error}", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
