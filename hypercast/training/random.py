"""Named random streams: what one consumer draws never shifts what another gets.

Every stream is seeded from a hash of the run's seed and the stream's name, so that an extra module, an extra dropout or
another order of construction leaves all other numbers as they were. Arms of an experiment that share a seed then differ
by their arm only.
"""

import hashlib
import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def stream_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2^63) from BLAKE2 of ``seed`` and ``names``."""
    text = json.dumps([seed, *names])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator of its own for ``(seed, *names)``: ``generator(0, "shuffle", window)``."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))


def normal_start(parameter: Tensor, std: float) -> None:
    """Have :func:`initialise_` draw ``parameter`` from a normal with that standard deviation; 0 means zeros."""
    setattr(parameter, "init_std", std)  # noqa: B010 - mypy knows no such attribute of a tensor


@torch.no_grad()
def initialise_(module: nn.Module, seed: int) -> None:
    """Set every parameter from ``(seed, its name)`` alone.

    A parameter given to :func:`normal_start` is normal with its standard deviation; one with fewer than
    two dimensions is zeros if its name ends in ``bias`` and ones (scales of normalisations) otherwise; all others are
    Xavier uniform (Glorot & Bengio 2010). Values are the same on every device.
    """
    for name, parameter in module.named_parameters():
        stream = generator(seed, "parameter", name)
        values = torch.empty(parameter.shape, dtype=torch.float32)
        std = getattr(parameter, "init_std", None)
        if std is not None:
            values.normal_(0.0, std, generator=stream)
        elif parameter.dim() < 2:
            values.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            field = math.prod(parameter.shape[2:])
            bound = math.sqrt(6.0 / ((parameter.shape[0] + parameter.shape[1]) * field))
            values.uniform_(-bound, bound, generator=stream)
        parameter.copy_(values)


class NamedStream(nn.Module):
    """A module whose n-th draw depends on ``(seed, name, n)`` and its kind only: the count is the whole state.

    Args:
        kind: of what is drawn; streams of two kinds never meet.
        seed: of the run.
        name: of the stream; two modules of one kind, name and seed draw the same.
    """

    def __init__(self, kind: str, *, seed: int, name: str) -> None:
        super().__init__()
        self.kind = kind
        self.seed = seed
        self.name = name
        self._drawn = 0

    def next_stream(self, device: torch.device) -> torch.Generator:
        """The generator of the next draw; one a draw makes the count the state on every device."""
        stream = torch.Generator(device=device).manual_seed(stream_seed(self.seed, self.kind, self.name, self._drawn))
        self._drawn += 1
        return stream

    def get_state(self) -> Tensor:
        """How many draws were made: int64 [], to be saved with the run."""
        return torch.tensor(self._drawn, dtype=torch.int64)

    def set_state(self, state: Tensor) -> None:
        """Continue after ``get_state()``."""
        self._drawn = int(state)


class NamedDropout(NamedStream):
    """Dropout whose n-th mask depends on ``(seed, name, n)`` only; the identity in evaluation mode.

    Args:
        p: probability of dropping, in [0, 1); taken to the nearest 1 / 65,536.
        seed: of the run.
        name: of the stream; two modules of one name and seed draw the same masks.

    Raises:
        ValueError: ``p`` is outside [0, 1).
    """

    def __init__(self, p: float, *, seed: int, name: str) -> None:
        super().__init__("dropout", seed=seed, name=name)
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout {name!r}: p must be in [0, 1), got {p}. Example: 0.1.")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any shape, with entries dropped and the rest scaled by 1 / (1 - p)."""
        if not self.training or self.p == 0.0:
            return x
        stream = self.next_stream(x.device)
        return x * (self._kept(x, stream).to(x.dtype) / (1.0 - self.p))

    def _kept(self, x: Tensor, stream: torch.Generator) -> Tensor:
        """Bool of the shape of ``x``. Four entries share a draw of 64 bits: drawing takes the most time."""
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        bits.random_(-(2**63), None, generator=stream)
        dropped_below = round(self.p * 2**16) - 2**15
        return bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped_below

    def extra_repr(self) -> str:
        return f"p={self.p}, seed={self.seed}, name={self.name!r}"


def get_states(module: nn.Module) -> dict[str, Tensor]:
    """The states of all :class:`NamedStream` modules inside ``module``, by the modules' names."""
    return {name: inner.get_state() for name, inner in module.named_modules() if isinstance(inner, NamedStream)}


def set_states(module: nn.Module, states: Mapping[str, Tensor]) -> None:
    """Restore what :func:`get_states` returned.

    Raises:
        KeyError: a stream of ``module`` has no state in ``states``.
    """
    for name, inner in module.named_modules():
        if isinstance(inner, NamedStream):
            inner.set_state(states[name])
