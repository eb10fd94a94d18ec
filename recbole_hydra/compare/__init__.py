"""Compare models so that the table can be trusted: many seeds, one protocol, honest costs."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from recbole_hydra.checks import boolean
from recbole_hydra.compare.agreement import check_other
from recbole_hydra.compare.comparison import Comparison
from recbole_hydra.compare.in_time import LEAVE_ONE_OUT, read_split
from recbole_hydra.compare.plan import FOLDER, make_plan
from recbole_hydra.compare.runner import run_tasks
from recbole_hydra.settings.spelling import home

__all__ = ["Comparison", "compare"]

logger = logging.getLogger(__name__)


def compare(
    models: str | Iterable[str],
    datasets: str | Iterable[str] | None = None,
    seeds: int | Iterable[int] = (2020,),
    output_dir: str | PathLike[str] = "comparison",
    config_file_list: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    model_config: Mapping[str, str | PathLike[str] | Sequence[str | PathLike[str]]] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
    resume: bool = False,
    popularity: bool = True,
    latex: bool = False,
    show_progress: bool = True,
    split: str = LEAVE_ONE_OUT,
    cut: float | None = None,
    agreement_with: str | PathLike[str] | None = None,
) -> Comparison:
    """Train and test every model with every seed on every dataset, and write the report.

    Every run is a process of its own. A run that fails is reported and does not stop the others;
    after a kill, or Ctrl-C, the same call with ``resume`` continues: finished runs are kept, those
    that were interrupted or failed go on at the epoch they had reached.

    Args:
        models, datasets: names. With the setting ``domains`` there is one dataset, all of them
            together, and ``datasets`` stays None.
        seeds: integers from 0 on.
        output_dir: where the runs and the report go; new or empty, unless ``resume``.
        config_file_list: yaml files for all models.
        model_config: yaml files for one model, ``{"SASRec": "a.yaml" or ["a.yaml", ...]}``; they go
            over those for all.
        config_dict, argv: settings for all models, over the files; see
            :class:`~recbole_hydra.config.Config`. ``training_mode`` is one for all sequential
            models: augmentation if it is asked for, otherwise autoregressive.
        resume: continue what ``output_dir`` holds of this comparison.
        popularity: add RecBole's Pop, which recommends the most frequent items, so that a broken
            run shows.
        latex: also write ``table.tex``.
        show_progress: a bar over runs, on stderr.
        split: ``"leave_one_out"``, each user's last interaction is tested, or ``"time"``: train
            before a moment, validate on the last part before it, test on every event after it; see
            :mod:`recbole_hydra.data.time_cut`. RecentPop is then a second popularity baseline.
        cut: of a split in time, the share of interactions before that moment, 0.9 by default;
            validation is the same share's rest of what lies before it.
        agreement_with: folder of an earlier comparison of another split, of the same dataset and at
            least two of the models: the report says how far both agree on the models' order.

    Returns:
        The :class:`Comparison`, its report written.

    Raises:
        ComparisonError: models, datasets or seeds given twice or not at all; a model that cannot
            train in the mode; settings that would make the runs incomparable; an ``output_dir``
            that holds something else; a cut without a split in time; a comparison that none can
            agree with.
        ConfigError, DatasetError: what :class:`~recbole_hydra.config.Config` and the data refuse,
            an unknown split, a cut outside (0, 1), a dataset with fewer than ten test users, or
            with no times that users can be compared by.
        KeyboardInterrupt: after the partial report is written.
    """
    for name, value in (
        ("resume", resume), ("popularity", popularity), ("latex", latex),
        ("show_progress", show_progress),
    ):  # fmt: skip
        boolean(name, value)
    output_dir = home(output_dir)
    layers = (config_file_list, model_config, config_dict, argv)
    share = read_split(split, cut)
    other = None if agreement_with is None else Comparison(home(agreement_with))
    plan = make_plan(models, datasets, seeds, output_dir, *layers, popularity, share)
    if other is not None:
        check_other(plan.identity, other, str(agreement_with))
    for note in plan.notes:
        logger.warning(note)
    FOLDER.claim(output_dir, plan.identity, resume)
    try:
        run_tasks(plan, show_progress)
    finally:
        comparison = Comparison(output_dir)
        comparison.write(latex, other)
    return comparison
