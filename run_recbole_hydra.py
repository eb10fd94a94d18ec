"""Train a model: ``python run_recbole_hydra.py --model=Hydra --dataset=ml-100k``."""

import sys

from recbole_hydra.cli import main

if __name__ == "__main__":
    sys.exit(main())
