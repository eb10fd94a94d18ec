"""``python -m recbole_hydra.cli``."""

import sys

from recbole_hydra.cli import main

sys.exit(main())
