"""What a run came to, in numbers and as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from recbole_hydra.settings.config import Config


def count_parameters(model: torch.nn.Module, n_items: int) -> dict[str, int]:
    """Trainable parameters: tables with one row per item, the others, and all."""
    shapes = [p.shape for p in model.parameters() if p.requires_grad]
    item_table = sum(shape.numel() for shape in shapes if shape[:1] == (n_items,))
    total = sum(shape.numel() for shape in shapes)
    return {"item_table": item_table, "other": total - item_table, "total": total}


def result_table(config: Config, result: Mapping[str, Any]) -> str:
    """The result of a run as text for a terminal."""
    from tabulate import tabulate

    valid, test = result["best_valid_result"] or {}, result["test_result"] or {}
    rows = [[metric, valid.get(metric), value] for metric, value in test.items()]
    headers = ["metric", "valid", "test"]
    if "zero_shot" in result:
        headers.append("test, before training")
        rows = [[*row, result["zero_shot"]["test"][row[0]]] for row in rows]
    parameters = result["parameters"]
    lines = [
        f"{config['model']} on {config['dataset']}: {result['epochs_run']} epochs, "
        f"{result['wall_seconds']:.1f} s, {parameters['total']:,} parameters "
        f"({parameters['item_table']:,} item table + {parameters['other']:,} other)",
        tabulate(rows, headers=headers, floatfmt=".4f", tablefmt="simple"),
    ]
    if result["best_checkpoint"]:
        lines.append(f"best model: {result['best_checkpoint']}")
    return "\n".join(lines)
