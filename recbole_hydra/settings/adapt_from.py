"""``adapt_from``: a model that starts from what another has learned has that one's form."""

from typing import Any

import yaml

from recbole_hydra import checkpoint
from recbole_hydra.errors import ConfigError
from recbole_hydra.settings.known_keys import PROPERTIES

#: What a model that is adapted does not take over from its checkpoint: how to train, and data.
_NOT_OF_ORIGIN = {
    "loss_type", "train_neg_sample_args", "num_negatives", "negative_distribution",
    "logq_correction", "gbce_t", "scan_backend", "llm_learning_rate", "llm_gradient_checkpointing",
    "item_text_fields", "missing_item_text", "item_llm_cache", "adapt_from", "adapt",
    "learning_rate", "learning_rate_decay", "later_targets", "item_initialization",
    "cooccurrence_std",
}  # fmt: skip


def settings_of_origin(origin: str) -> dict[str, Any]:
    """The settings that decide the form of the model that ``adapt_from`` names.

    Args:
        origin: path of a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
        ConfigError: its model knows its items by their ids alone.
    """
    settings = checkpoint.load_checkpoint(origin)["config"]
    if "text" not in str(settings.get("item_encoder")):
        raise ConfigError(
            f"adapt_from: {origin} knows its items by their ids, which another dataset does "
            "not share; it takes a model with item_encoder text or id+text"
        )
    own = yaml.safe_load((PROPERTIES / "model" / "Hydra.yaml").read_text(encoding="utf-8"))
    return {key: settings[key] for key in own if key in settings and key not in _NOT_OF_ORIGIN}
