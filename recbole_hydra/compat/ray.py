"""Ray from 2.6, which RecBole asks for, to today's."""

import os
from pathlib import Path
from types import SimpleNamespace


def prepare_ray(cluster: bool) -> None:
    """Set what Ray reads from the environment when it is imported, unless the user has set it.

    Ray's own output is off, since ours takes its place. A trial that fails before its first
    evaluation has no score, which Ray takes for a mistake.

    ``ray start`` of current Ray demands a token once this machine has one, but a program that
    connects does not show it unless RAY_AUTH_MODE says so. Delete when ``ray.init`` does.

    Args:
        cluster: whether a running cluster is to be used.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    if cluster and ("RAY_AUTH_TOKEN" in os.environ or Path(token).is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def ray_tune() -> SimpleNamespace:
    """The names of Ray Tune that moved between Ray 2.6, which RecBole asks for, and today's.

    Delete when Ray 2.6 is no longer supported: all of them are in ``ray.tune`` now.

    Returns:
        ``report(metrics)``, ``FailureConfig``, ``RunConfig``, and ``run_settings``, what RunConfig
        takes besides.
    """
    from ray import tune

    if hasattr(tune, "RunConfig"):
        return SimpleNamespace(
            report=tune.report,
            RunConfig=tune.RunConfig,
            FailureConfig=tune.FailureConfig,
            run_settings={},
        )
    from ray.air import FailureConfig, RunConfig, session

    # Ray 2.6 copies a trial's folder from its node to the driver's, were it the same folder or not.
    return SimpleNamespace(
        report=session.report,
        RunConfig=RunConfig,
        FailureConfig=FailureConfig,
        run_settings={"sync_config": tune.SyncConfig(syncer=None)},  # type: ignore[call-arg]
    )
