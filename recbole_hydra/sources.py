"""The source code of classes, which says what they read."""

import inspect
import sys


def source_of(model_class: type) -> str | None:
    """The source of a model class and its bases, a user's own class included.

    None where the source of a class cannot be found, as of one typed into a prompt.
    """
    texts: dict[str | type, str] = {}
    for base in model_class.__mro__:
        if base.__module__.split(".")[0] in ("builtins", "abc", "torch"):
            continue
        try:
            texts[base.__module__] = inspect.getsource(sys.modules[base.__module__])
        except (OSError, TypeError, KeyError):
            try:
                texts[base] = inspect.getsource(base)
            except (OSError, TypeError):
                return None
    return "\n".join(texts.values())
