"""What the settings of evaluation mean together: the split, the ranking, and the metrics."""

from recbole.evaluator import metric_types, smaller_metrics
from recbole.utils import EvaluatorType, ModelType

from recbole_hydra.errors import ConfigError
from recbole_hydra.metrics import metric_names


def check_evaluation(final: dict, written: dict) -> None:
    """Refuse settings of evaluation that contradict each other.

    Args:
        final: all settings, each as its rule reads it. written: those of the user among them.

    Raises:
        ConfigError: metrics of two kinds, a ``valid_metric`` that is not computed, a ranking that
            the metrics cannot measure, an order that the model cannot be trained in.
    """
    metrics, mode = final["metrics"], final["eval_args"]["mode"]
    kinds = {metric_types[metric.lower()] for metric in metrics}
    if len(kinds) > 1:
        ranking, other = (
            ", ".join(m for m in metrics if (metric_types[m.lower()] == kind))
            for kind in (EvaluatorType.RANKING, EvaluatorType.VALUE)
        )
        raise ConfigError(
            f"metrics: {ranking} are of rankings, {other} of single predictions; they cannot be "
            "computed in one run; leave out those of one kind"
        )
    computed = metric_names(metrics, final["topk"])
    valid_metric = str(final["valid_metric"])
    if valid_metric.lower() not in [name.lower() for name in computed]:
        raise ConfigError(
            f"valid_metric: {valid_metric} is not computed; metrics and topk give "
            f"{', '.join(computed)}"
        )
    bigger = valid_metric.split("@")[0].lower() not in smaller_metrics
    if written.get("valid_metric_bigger", bigger) not in (bigger, None):
        raise ConfigError(
            f"valid_metric_bigger follows from valid_metric: it is {bigger} for {valid_metric}; "
            "remove it"
        )
    modes = {*(mode.values() if isinstance(mode, dict) else [mode])}
    if "labeled" in modes and kinds == {EvaluatorType.RANKING}:
        raise ConfigError(
            "eval_args: mode: labeled compares predictions with labels, for metrics such as AUC, "
            f"not {', '.join(metrics)}; use full or uni100, or other metrics"
        )
    if "full" in modes and kinds == {EvaluatorType.VALUE}:
        raise ConfigError(
            f"eval_args: mode: full ranks all items, which {', '.join(metrics)} cannot measure; "
            "use labeled or uni100, or metrics such as NDCG"
        )
    order = final["eval_args"]["order"]
    lists = f"{final['ITEM_ID_FIELD']}{final['LIST_SUFFIX']}"
    ready_made = lists in (final["alias_of_item_id"] or [])  # rows bring their histories along
    if final["MODEL_TYPE"] == ModelType.SEQUENTIAL and order != "TO" and not ready_made:
        raise ConfigError(f"eval_args: order {order} mixes up the histories; set order: TO")
