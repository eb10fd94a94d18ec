"""What the operations tell torch.compile."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T", bound=Callable[..., object])


def constant_result(function: T) -> T:
    """Let torch.compile call ``function`` once and take what it returns for a constant.

    It is :func:`torch.compiler.assume_constant_result` without importing the compiler, which takes
    longer than torch itself and which a run without it need not wait for. Delete when torch marks
    functions without that.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
