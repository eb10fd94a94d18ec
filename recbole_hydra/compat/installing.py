"""What has to be there before anything else."""


def require_recbole() -> None:
    """Check that RecBole is here, which our metadata cannot ask for: see setup.cfg.

    Delete when RecBole's metadata takes a current Ray, and it is a dependency like the others.

    Raises:
        ImportError: it is missing, or of another version; ``name`` is "recbole".
    """
    remedy = "install it with: pip install --no-deps recbole==1.2.1"
    try:
        import recbole
    except ModuleNotFoundError as error:
        if error.name != "recbole":
            raise
        raise ModuleNotFoundError(f"RecBole is missing; {remedy}", name="recbole") from None
    version = getattr(recbole, "__version__", None) or "of no version"
    if version != "1.2.1":
        message = f"RecBole 1.2.1 is needed, and the one here is {version}; {remedy}"
        raise ImportError(message, name="recbole")
