"""Ray Tune sweeps: trials that report every evaluation, stop early when they are hopeless, survive
a kill, and never see the test set."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recbole_hydra.checks import boolean
from recbole_hydra.compat import ray as compat
from recbole_hydra.errors import RecBoleHydraError, TuneError
from recbole_hydra.output_folder import write_json
from recbole_hydra.tune.plan import FOLDER, Plan, make_plan, read_trials
from recbole_hydra.tune.sweep import SETTINGS, Sweep

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from recbole_hydra.tune.trial import Job

__all__ = ["Sweep", "tune"]

#: How often a trial is started again whose process died, as with its node.
MAX_FAILURES = 3


def tune(
    model: str | type | None,
    dataset: str | None,
    space: dict[str, Any] | str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str] = "sweep",
    num_samples: int | None = None,
    search: Literal["random", "grid", "optuna"] = "random",
    scheduler: Literal["asha", "none"] = "asha",
    grace_period: int | None = None,
    reduction_factor: float | None = None,
    max_concurrent: int | None = None,
    cpus_per_trial: int | None = None,
    gpus_per_trial: float | None = None,
    ray_address: str | None = None,
    resume: bool = False,
    config_file_list: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
    show_progress: bool = True,
) -> Sweep:
    """Search the hyperparameters of a model on a dataset, on validation; test the best once.

    After a kill, or Ctrl-C, the same call with ``resume`` continues: trials that are over are kept,
    the others go on at the epoch they had reached. A trial that fails, or whose score is not a
    number, is written down, and the others go on.

    Args:
        model: name or class; dataset: name, None with the setting ``domains``.
        space: what is searched, see :func:`~recbole_hydra.tune.space.read_space`; by default our
            yaml for the model.
        output_dir: where trials and results go; new or empty, unless ``resume``; with several
            machines, on a file system they share.
        num_samples: how many configurations are tried: 20 by default, with ``search="grid"`` all.
        search: ``"random"``, ``"grid"``, or ``"optuna"`` (tree-structured Parzen estimator).
        scheduler: ``"asha"`` (asynchronous successive halving, arXiv 1810.05934) stops trials
            whose best score is not among the best ``1 / reduction_factor`` of those that came as
            far, at ``grace_period`` epochs (3 by default, with ``reduction_factor`` 3) and its
            multiples by powers of ``reduction_factor``; ``"none"`` stops none.
        max_concurrent, cpus_per_trial, gpus_per_trial: see
            :func:`~recbole_hydra.tune.cluster.share_out`.
        ray_address: see :func:`~recbole_hydra.tune.cluster.connection`.
        resume: continue what ``output_dir`` holds of this sweep; ``num_samples`` and the shares of
            the machine may be others.
        config_file_list, config_dict, argv: settings of all trials; see
            :class:`~recbole_hydra.config.Config`. ``epochs`` is the most that a trial trains,
            ``valid_metric`` what chooses.
        show_progress: a table of the trials, on stderr.

    Returns:
        The :class:`Sweep`; its folder has ``best.yaml``, ``trials.csv`` and ``sweep.png``.

    Raises:
        TuneError: a space that is empty, contradictory, or names a key that the model does not
            read; settings that trials cannot differ in; an address where no cluster answers; an
            ``output_dir`` that holds something else; or no trial came to a score.
        ConfigError, DatasetError: what :class:`~recbole_hydra.config.Config` and the data refuse,
            a ``valid_metric`` that is not computed included.
        KeyboardInterrupt: after the table of what is over is written.
    """
    boolean("resume", resume)
    boolean("show_progress", show_progress)
    compat.prepare_ray(cluster=bool(ray_address or os.environ.get("RAY_ADDRESS")))
    plan = make_plan(
        model, dataset, space, num_samples, search, scheduler, grace_period, reduction_factor,
        config_file_list, config_dict, argv,
    )  # fmt: skip
    folder = Path(output_dir).expanduser().absolute()
    if set("#?") & set(str(folder)):
        raise TuneError(
            f"output_dir {folder}: Ray takes # and ? for parts of an address; choose another name"
        )
    FOLDER.check(folder, plan.identity, resume)
    if resume:
        sweep = Sweep(folder)
        if sweep.is_over(plan.number) and sweep.test_result is not None:
            sweep.write()  # a kill may have come just before
            return sweep
    # Ray is imported where it is needed, so that bad input is refused at once.
    from recbole_hydra.tune.cluster import connection, nodes, share_out

    with connection(ray_address):
        shares = share_out(
            nodes(), plan.number, max_concurrent, cpus_per_trial, gpus_per_trial,
            plan.base["use_gpu"],
        )  # fmt: skip
        job = _start_job(plan, folder, threads=shares[1])
        FOLDER.claim(folder, plan.identity, resume)
        write_json(folder / SETTINGS, plan.settings)
        _run_trials(plan, job, shares, show_progress)
        sweep = Sweep(folder)
        if not sweep.is_over(plan.number):
            sweep.write()
            raise KeyboardInterrupt
        if sweep.best is None:
            sweep.write()
            first = sweep.trials[0]
            raise TuneError(
                f"no trial came to a validation score; the first failed with {first['error']}"
            )
        if sweep.test_result is None:
            sweep.add_test_result(_test(job, sweep.best, shares))
    sweep.write()
    return sweep


def _start_job(plan: Plan, folder: Path, threads: int) -> "Job":
    """Start the actor that builds datasets, and have it build the first, which checks the data."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from recbole_hydra.tune.datasets import Datasets
    from recbole_hydra.tune.trial import Job

    # On this node, where the data are, and nowhere else: it must not die with another.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(Datasets).options(scheduling_strategy=here).remote()
    params = plan.configurations[0] if plan.configurations else {}
    try:
        ray.get(actor.get.remote(plan.model, plan.dataset, plan.trial_settings(params)))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RecBoleHydraError):
            raise error.cause from None
        raise
    return Job(str(folder), plan.model, plan.dataset, plan.settings, threads, actor)


def _run_trials(
    plan: Plan, job: "Job", shares: tuple[int, int, float], show_progress: bool
) -> None:
    """Run what is not over; returns when all is, or after an interruption."""
    from ray import tune as ray_tune

    from recbole_hydra.tune.progress import Bookkeeper, LiveTable
    from recbole_hydra.tune.search import TrialSource, make_scheduler
    from recbole_hydra.tune.trial import run_trial

    trials = read_trials(job.folder)
    scheduler = make_scheduler(plan, trials)
    source = TrialSource(plan, job.folder, trials, scheduler)
    if len(source) == 0:
        return
    concurrent, cpus, gpus = shares
    callbacks: list[ray_tune.Callback] = [Bookkeeper(job.folder, plan.base["epochs"])]
    if show_progress:
        metric, larger = plan.identity["valid_metric"], plan.mode == "max"
        callbacks.append(LiveTable(job.folder, plan.number, metric, larger))
    # Ray prepares as many trials as may run, not one at a time.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(concurrent))
    api = compat.ray_tune()
    trainable = ray_tune.with_parameters(run_trial, job=job)
    ray_tune.Tuner(
        ray_tune.with_resources(trainable, {"cpu": cpus, "gpu": gpus}),
        tune_config=ray_tune.TuneConfig(
            search_alg=source,
            scheduler=scheduler,
            num_samples=len(source),
            max_concurrent_trials=concurrent,
            reuse_actors=False,  # the memory of a trial ends with it
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=api.RunConfig(
            storage_path=str(Path(job.folder) / "ray"),
            failure_config=api.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=callbacks,
            verbose=0,
            **api.run_settings,
        ),
    ).fit()


def _name(trial: "Trial") -> str:
    return f"trial-{trial.config['number']:04d}"


def _test(job: "Job", best: Mapping[str, Any], shares: tuple[int, int, float]) -> dict[str, float]:
    """The one look at the test set, with the resources of a trial."""
    import ray

    from recbole_hydra.tune.trial import final_test

    _, cpus, gpus = shares
    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(final_test)
    return ray.get(task.remote(job, best["number"], best["params"]))
