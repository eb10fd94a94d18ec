"""Dropout whose random bits do not cost more than the layer it follows."""

from typing import Any

import torch
from torch import Tensor, nn

from recbole_hydra.checks import one_of, probability
from recbole_hydra.errors import ConfigError

#: Random numbers of this many bits decide; four come out of one draw of torch's CPU generator.
_BITS = 16

#: Where a model may have dropout: on the item vectors that are read, on the two residual branches
#: of a layer, and on the state that is compared with the items.
PLACES = ("item", "mamba", "ffn", "output")


def dropout_by_place(p: Any, places: Any) -> dict[str, float]:
    """The probability of dropout at each of :data:`PLACES`.

    Args:
        p: the setting ``dropout_prob``. places: ``dropout_places``, those that have dropout.

    Raises:
        ConfigError: no probability, or a place that there is not.
    """
    p = probability("dropout_prob", p)
    if not isinstance(places, (list, tuple)):
        raise ConfigError(f"dropout_places must be a list, got {places!r}")
    for place in places:
        one_of("dropout_places", place, PLACES)
    return {place: p if place in places else 0.0 for place in PLACES}


class Dropout(nn.Dropout):
    """``nn.Dropout`` with a faster mask on the CPU.

    torch's CPU generator draws one number per element, a tenth of a training step of Hydra. Here a
    draw of 64 bits serves four elements, so that probabilities are multiples of 2^-16 (0.2 becomes
    0.199997); what is kept is scaled by that very probability, so that the expectation is exact.
    Draws come from torch's generator: a seed gives the same masks. On a GPU, and compiled, it is
    ``nn.Dropout``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of ``x``, of any shape, with probability ``p`` while training."""
        threshold = round(self.p * 2**_BITS)
        exact = threshold in (0, 2**_BITS)  # nothing or everything, as far as 16 bits can tell
        # torch.compile fuses what nn.Dropout does, and cannot trace random_.
        elsewhere = x.device.type != "cpu" or torch.compiler.is_compiling()
        if not self.training or exact or elsewhere:
            return super().forward(x)
        draws = torch.empty(-(-x.numel() * _BITS // 64), dtype=torch.int64, device=x.device)
        # The whole range of int64, which random_ covers when it is told its lower end.
        draws.random_(torch.iinfo(torch.int64).min, None)
        bits = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform in -2^15 .. 2^15 - 1
        mask = bits >= threshold - 2 ** (_BITS - 1)
        scale = 2**_BITS / (2**_BITS - threshold)
        # x * mask * scale in one pass; its own derivative has the same form.
        return torch.ops.aten.native_dropout_backward(x, mask, scale)
