"""The public API, by name and signature, so that a change of it is seen in a review.

``python tests/test_public_api.py`` writes ``public_api.txt`` anew.
"""

import importlib
import inspect
import re
from pathlib import Path

FILE = Path(__file__).parent / "public_api.txt"

#: Packages whose ``__all__`` is public.
PACKAGES = ("recbole_hydra", "recbole_hydra.compare", "recbole_hydra.data", "recbole_hydra.layers",
            "recbole_hydra.ops", "recbole_hydra.tune")  # fmt: skip


def api() -> str:
    """A line per public function, class and public method of a class of ours."""
    lines = []
    for package in map(importlib.import_module, PACKAGES):
        for name in sorted(package.__all__):
            value = getattr(package, name)
            lines.append(f"{package.__name__}.{name}{signature(value)}")
            if inspect.isclass(value):
                lines += [
                    f"    {key}{signature(member)}"
                    for key, member in sorted(vars(value).items())
                    if not key.startswith("_") and inspect.isfunction(member)
                ]
    return "\n".join(lines) + "\n"


def signature(value) -> str:
    if isinstance(value, str | dict | tuple):
        return f" = {value!r}"
    try:
        words = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    words = re.sub(r"<(?:function|class) '?([\w.]+)'?(?: at 0x\w+)?>", r"\1", words)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", words)  # names without their modules


def test_the_public_api_is_what_is_written_down():
    written = FILE.read_text(encoding="utf-8").splitlines()
    found = api().splitlines()
    assert [line for line in found if line not in written] == []
    assert [line for line in written if line not in found] == []


if __name__ == "__main__":
    FILE.write_text(api(), encoding="utf-8")
