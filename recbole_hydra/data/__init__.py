"""Datasets: RecBole's, with the checks whose failure RecBole reports late or not at all."""

from recbole_hydra.data.dataset import (
    PreparedData,
    create_dataset,
    make_loaders,
    prepare_data,
    split_dataset,
)
from recbole_hydra.data.vocabulary import Vocabulary, user_histories

__all__ = [
    "PreparedData",
    "Vocabulary",
    "create_dataset",
    "make_loaders",
    "prepare_data",
    "split_dataset",
    "user_histories",
]
