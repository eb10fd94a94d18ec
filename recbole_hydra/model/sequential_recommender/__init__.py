"""Sequential recommenders, one file per model."""

from recbole_hydra.model.sequential_recommender.hydra import Hydra
from recbole_hydra.model.sequential_recommender.linear_map import LinearMap
from recbole_hydra.model.sequential_recommender.mamba4rec import Mamba4Rec

__all__ = ["Hydra", "LinearMap", "Mamba4Rec"]
