"""What the command line passes to every measurement; each takes what concerns it."""

from dataclasses import dataclass
from pathlib import Path

Values = dict[str, float | str]
"""What a measurement returns: one flat object of numbers and a few words."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Attributes:

    data: the data set, for measurements that do not make or carry their own.
    work: folder for finished trainings, which a measurement that is started again reads; a temporary one if not given.
    """

    data: Path | None = None
    work: Path | None = None
