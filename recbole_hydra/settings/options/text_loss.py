"""``loss_type`` of a model whose items are texts: one over the whole catalogue is not for an item
LLM that is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recbole_hydra.settings.config import Config


def fit(config: Config) -> None:
    """Take a sampled loss where nobody asked for another."""
    final = config.final_config_dict
    if "text" not in str(final.get("item_encoder")) or final["llm_training"] == "frozen":
        return
    kept = final["adapt_from"] and "lora" not in (final["adapt"] or [])
    chosen = config.chose("loss_type")
    if final["loss_type"] == "CE" and not chosen and not kept:
        final["loss_type"] = "SampledCE"
        config.notes.append(
            "loss_type: SampledCE, since CE would send every item of the catalogue through the "
            f"LLM in every step (llm_training {final['llm_training']})"
        )
