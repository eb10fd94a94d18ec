"""The jobs of the command line for a model that is trained."""

from __future__ import annotations

from typing import Any

RECOMMEND_USAGE = """\
usage: recbole-hydra recommend --checkpoint=FILE --output=FILE.parquet [--key=value ...]

Write the best items of all users to a Parquet file: user, rank, item, score.

  --checkpoint=FILE         of a training run, saved/....best.pth
  --output=FILE.parquet     new; while it is made, FILE.parquet.parts holds what is done
  --users=all               all of the training data, or a file with one id a line
  --k=10                    items per user
  --exclude_history=True    leave out what a user has had
  --domain=NAME             of a model of several domains
  --store=FOLDER            users as a Recommender keeps them there, or redis://HOST:PORT/0
  --vectors=FOLDER          write the vectors of items and users there; --output may be left out
  --resume=True             continue a call that was killed
  --show_progress=False     no progress bar
"""

SERVE_USAGE = """\
usage: recbole-hydra serve --checkpoint=FILE [--store=...] [--key=value ...]

Answer over HTTP: events in, recommendations out; a page to try it at /.

  --checkpoint=FILE         of a training run, saved/....best.pth
  --store=FOLDER            where users are kept, or redis://HOST:PORT/0; default: in memory
  --host=127.0.0.1          another one needs a token
  --port=8000               0: a free one
  --token_file=FILE         what requests must bring; a file that only you can read; or the
                            environment variable RECBOLE_HYDRA_TOKEN
  --workers=1               processes; more than one share users by Redis
  --watch=FOLDER            the newest checkpoint there takes over, without a stop
  --recompute=True          the store holds another model's states: compute them anew
  --items=FILE.item         what items are called, where that is not where it was in training
  --index=auto              for large catalogues, see docs/live.md
  --batch_ms=0              milliseconds that a request may wait for others
  --ray_address=auto        deploy on a running Ray cluster, and end; or HOST:PORT
  --replicas=2              processes in the cluster, with --store=redis://...; 0 takes it down
"""

EXPORT_USAGE = """\
usage: recbole-hydra export --checkpoint=FILE --output=FOLDER

Write a trained Hydra or Mamba4Rec for use without torch and RecBole: graphs of ONNX, item vectors,
raw ids, a manifest, and reader.py, which recommends with numpy and onnxruntime alone.

  --checkpoint=FILE   of a training run, saved/....best.pth
  --output=FOLDER     new, or empty
"""


def serve(argv: list[str]) -> None:
    """Run the job ``serve`` until it is told to end."""
    from recbole_hydra.checks import did_you_mean
    from recbole_hydra.errors import ServeError
    from recbole_hydra.settings.rules import integer, number, switch
    from recbole_hydra.settings.spelling import home, parse_arguments, parse_value

    arguments = parse_arguments(argv)
    known = (
        "checkpoint", "store", "host", "port", "token_file", "workers", "watch", "recompute",
        "batch_ms", "ray_address", "replicas", "items", "index",
    )  # fmt: skip
    if "token" in arguments:
        raise ServeError(
            "token: not on the command line, where others can read it; pass --token_file=FILE, or "
            "set RECBOLE_HYDRA_TOKEN"
        )
    for key in arguments:
        if key not in known:
            raise ServeError(f"serve: unknown key {key!r}{did_you_mean(key, known)}")
    if "checkpoint" not in arguments:
        raise ServeError("serve: --checkpoint is missing; see recbole-hydra serve --help")
    checks = {
        "port": integer(0, 65535), "workers": integer(1), "recompute": switch(),
        "batch_ms": number(0), "replicas": integer(0),
    }  # fmt: skip
    values: dict[str, Any] = {
        key: checks[key](key, parse_value(text)) if key in checks else home(text)
        for key, text in arguments.items()
    }
    cluster, replicas = values.pop("ray_address", None), values.pop("replicas", None)
    if (cluster is None) != (replicas is None):
        raise ServeError("serve: --ray_address and --replicas belong together")
    if cluster is not None and "workers" in values:
        raise ServeError("workers: a cluster has --replicas")
    try:
        from recbole_hydra.serving.server.run import Plan
        from recbole_hydra.serving.server.run import serve as run
    except ImportError as error:
        raise ServeError(
            f"serve: {error.name} is not installed; pip install 'recbole-hydra[serve]'"
        ) from error
    if cluster is None:
        run(Plan(**values))
        return
    from recbole_hydra.serving.server.on_ray import deploy

    print(deploy(Plan(**values), cluster, replicas))


def recommend(argv: list[str]) -> None:
    """Run the job ``recommend``, and say what was written."""
    from recbole_hydra.checks import did_you_mean
    from recbole_hydra.errors import BulkError
    from recbole_hydra.settings.rules import integer, switch
    from recbole_hydra.settings.spelling import home, parse_arguments, parse_value

    arguments = parse_arguments(argv)
    known = (
        "checkpoint", "output", "users", "k", "exclude_history", "domain", "store", "vectors",
        "resume", "show_progress",
    )  # fmt: skip
    for key in arguments:
        if key not in known:
            raise BulkError(f"recommend: unknown key {key!r}{did_you_mean(key, known)}")
    for keys in (("checkpoint",), ("output", "vectors")):
        if not arguments.keys() & set(keys):
            missing = " or ".join(f"--{key}" for key in keys)
            raise BulkError(f"recommend: {missing} is missing; see recbole-hydra recommend --help")
    switches = {
        key: switch()(key, parse_value(arguments.get(key, default)))
        for key, default in (
            ("exclude_history", "False"), ("resume", "False"), ("show_progress", "True")
        )
    }  # fmt: skip
    k = integer(least=1)("k", parse_value(arguments.get("k", "10")))

    from recbole_hydra.serving.bulk import read_users, recommend_all, write_vectors
    from recbole_hydra.serving.recommender import Recommender

    given = arguments.get("users", "all")
    users = None if given == "all" else read_users(home(given))
    with Recommender(home(arguments["checkpoint"]), arguments.get("store")) as service:
        if "output" in arguments:
            output, domain = home(arguments["output"]), arguments.get("domain")
            number = recommend_all(service, output, users, k, domain=domain, **switches)
            print(f"{output}: {number:,} users")
        if "vectors" in arguments:
            folder = home(arguments["vectors"])
            write_vectors(service, folder, users)
            print(f"{folder}: items.parquet, users.parquet, vectors.json")


def export(argv: list[str]) -> None:
    """Run the job ``export``, and say what was written."""
    from recbole_hydra.checks import did_you_mean
    from recbole_hydra.errors import ExportError
    from recbole_hydra.settings.spelling import home, parse_arguments

    arguments = parse_arguments(argv)
    known = ("checkpoint", "output")
    for key in arguments:
        if key not in known:
            raise ExportError(f"export: unknown key {key!r}{did_you_mean(key, known)}")
    for key in known:
        if key not in arguments:
            raise ExportError(f"export: --{key} is missing; see recbole-hydra export --help")

    from recbole_hydra.serving.export import export_model

    folder = export_model(home(arguments["checkpoint"]), home(arguments["output"]))
    print(f"{arguments['output']}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
