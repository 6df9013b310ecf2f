"""Pins: which foundation model an expert reads from.

An expert moves only when told to, and can go back: the file keeps every pin it ever had, the last one holds::

    ROOT/pins/EXPERT.json      {"expert": EXPERT, "history": [{lineage, version, dims, dtype}, ...], "sha256": ...}
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hypercast.errors import RegistryError
from hypercast.objects import record

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
SNAPSHOT_NAME = re.compile(rf"({NAME.pattern})@([0-9]{{4,9}})")


def check_name(name: str, *, what: str) -> str:
    """``name`` itself, if it may become part of a path.

    Raises:
        RegistryError: it is not a letter followed by at most 63 letters, digits, ``_`` or ``-``.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RegistryError(
            f"{what} {name!r} cannot be used: allowed is a letter followed by at most 63 letters, digits, '_' or '-'. "
            "Example: 'home_feed'."
        )
    return name


def snapshot_name(lineage: str, version: int) -> str:
    """``FM@0007`` for lineage ``FM`` and version 7."""
    return f"{lineage}@{version:04d}"


def parse_snapshot_name(name: str) -> tuple[str, int]:
    """The inverse of :func:`snapshot_name`.

    Raises:
        RegistryError: ``name`` is not of the form ``LINEAGE@NNNN``.
    """
    match = SNAPSHOT_NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise RegistryError(f"snapshot name {name!r} is not of the form LINEAGE@NNNN. Example: 'FM@0007'.")
    return match[1], int(match[2])


@dataclass(frozen=True, kw_only=True)
class Pin:
    """An expert's tie to a foundation model.

    Attributes:
        expert: name of the expert.
        lineage: the only lineage whose vectors it accepts.
        version: the only version it accepts; None follows the lineage.
        dims: representation name to width as of pinning; None while the lineage has published nothing.
        dtype: dtype of the vectors as of pinning; None as above.
    """

    expert: str
    lineage: str
    version: int | None = None
    dims: Mapping[str, int] | None = None
    dtype: str | None = None

    @property
    def target(self) -> str:
        """``FM@0007`` for a fixed pin, ``FM`` for one that follows."""
        return self.lineage if self.version is None else snapshot_name(self.lineage, self.version)

    def check(self, *, snapshot: str, representation: str, width: int, dtype: str) -> None:
        """Refuse vectors that this expert must not read.

        Raises:
            RegistryError: another lineage, another snapshot (fixed pins), another width or another dtype.
        """
        lineage, version = parse_snapshot_name(snapshot)
        expected = (self.dims or {}).get(representation)
        if lineage != self.lineage:
            problem = f"they come from lineage {lineage!r}"
        elif self.version is not None and version != self.version:
            problem = f"they come from snapshot {snapshot}"
        elif self.dims is not None and expected is None:
            problem = f"it was pinned to representations {sorted(self.dims)}, not {representation!r}"
        elif expected is not None and expected != width:
            problem = f"their width is {width}, not {expected}"
        elif self.dtype is not None and self.dtype != dtype:
            problem = f"their dtype is {dtype}, not {self.dtype}"
        else:
            return
        raise RegistryError(
            f"expert {self.expert!r} is pinned to {self.target} and refuses {representation!r} vectors of {snapshot}: "
            f"{problem}. Publish with {self.target}, or pin the expert anew and retrain it: "
            f"hypercast expert pin {self.expert} --lineage {lineage} --version {version}."
        )


def experts(root: Path) -> list[str]:
    """Names of all pinned experts, sorted."""
    return sorted(path.stem for path in (root / "pins").glob("*.json") if not path.name.startswith("."))


def read(root: Path, expert: str) -> list[Pin]:
    """All pins that ``expert`` ever had, oldest first; the last one holds. Empty for an unknown expert.

    Raises:
        RegistryError: a bad name, or a damaged file.
    """
    try:
        value = record.read(
            _path(root, expert),
            remedy=f"Delete it and pin the expert again: hypercast expert pin {expert} --lineage NAME.",
        )
    except FileNotFoundError:
        return []
    return [Pin(expert=expert, **entry) for entry in value["history"]]


def write(root: Path, expert: str, history: list[Pin]) -> None:
    """Atomically replace the pins of ``expert``."""
    entries = [
        {"lineage": pin.lineage, "version": pin.version, "dims": pin.dims and dict(pin.dims), "dtype": pin.dtype}
        for pin in history
    ]
    record.write(_path(root, expert), {"expert": expert, "history": entries})


def _path(root: Path, expert: str) -> Path:
    return root / "pins" / f"{check_name(expert, what='expert name')}.json"
