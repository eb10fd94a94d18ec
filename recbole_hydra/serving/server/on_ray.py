"""The same application on Ray Serve: replicas on the nodes of a cluster, users in Redis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_hydra.errors import ServeError
from recbole_hydra.serving.server.app import make_app
from recbole_hydra.serving.server.run import Plan, hosts_of, needs_redis, service_of, token_of

#: The name of the application in Ray Serve.
NAME = "recbole_hydra"


def deploy(plan: Plan, address: str, replicas: int) -> str:
    """Deploy on a running Ray cluster, or take down with ``replicas`` 0; the application stays when
    this process ends.

    Every node listens at ``plan.host`` and ``plan.port``, and finds the checkpoint under the same
    path.

    Args:
        address: of the cluster, HOST:PORT or auto.

    Returns:
        Where it is.

    Raises:
        ServeError: Ray Serve is missing or too old, no cluster at the address, a store that is no
            Redis, no token, or replicas that do not come up, with the first reason.
    """
    ray, serve = _ray_serve()
    if not plan.port:
        raise ServeError("port 0: the nodes of a cluster listen at the same one; name it")
    token = None
    if replicas:
        needs_redis(plan, f"replicas: {replicas}")
        token = token_of(plan)
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=40)
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ServeError(f"ray_address {address}: no cluster is there ({line})") from error
    try:
        if not replicas:
            serve.delete(NAME)
            return "taken down"
        return _run(serve, plan, token, replicas)
    finally:
        ray.shutdown()


def _run(serve: Any, plan: Plan, token: str | None, replicas: int) -> str:
    # A replica that starts again finds the store as the others have it.
    path = str(Path(plan.checkpoint).resolve())
    own = replace(plan, checkpoint=path, workers=replicas, recompute=True)

    def build() -> Any:
        return make_app(service_of(own), token, hosts_of(own, token))

    application = serve.deployment(serve.ingress(build)()).options(
        name="server", num_replicas=replicas, ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=1000,
    )  # fmt: skip
    serve.start(
        proxy_location="EveryNode", http_options={"host": plan.host, "port": plan.port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )  # fmt: skip
    try:
        serve.run(application.bind(), name=NAME, route_prefix="/")
    except RuntimeError as error:
        found = serve.status().applications.get(NAME)
        said = [d.message for d in found.deployments.values()] if found else []
        lines = [line for text in said for line in text.splitlines() if "Error: " in line]
        serve.delete(NAME)
        why = lines[-1].strip() if lines else " ".join(str(error).split())
        raise ServeError(f"replicas do not come up: {why}") from error
    return f"http://{plan.host}:{plan.port}"


def _ray_serve() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ServeError(
            f"ray_address: Ray Serve is not installed ({error.name}); pip install "
            "'recbole-hydra[serve,ray_serve]'"
        ) from error
    version = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if version < (2, 50):
        raise ServeError(
            f"ray_address: needs Ray 2.50 or newer, this is {ray.__version__}; on the stack that "
            "RecBole's metadata asks for use --workers with Redis"
        )
    return ray, serve
