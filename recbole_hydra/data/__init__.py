"""Datasets: RecBole's, with the checks whose failure RecBole reports late or not at all."""

from recbole_hydra.data.dataset import (
    Vocabulary,
    create_dataset,
    split_dataset,
    user_histories,
)

__all__ = ["Vocabulary", "create_dataset", "split_dataset", "user_histories"]
