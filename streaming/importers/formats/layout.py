"""What a format is: a mapping for a folder of official files and, where their layout needs it, columns to derive.

A derived column is computed block by block from columns of the files as they are read; the mapping names it like any
other.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from streaming.errors import DataError
from streaming.importers.mapping.config import FilesConfig, MappingConfig
from streaming.importers.mapping.source import Block, Reader, read_blocks

LONGEST_HEADER = 1 << 16  # bytes


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A column that is not in the files.

    Attributes:
        needs: columns of the files that it is computed from, at least one.
        compute: of a block that has them, an array with one value a row.
    """

    needs: tuple[str, ...]
    compute: Callable[[Block], pa.Array]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A folder of official files as the importer takes it: ``mapping``, and ``derived`` columns by name."""

    mapping: MappingConfig
    derived: Mapping[str, Derived] = field(default_factory=dict)

    @property
    def reader(self) -> Reader:
        """Reads the files' columns and derives the others."""
        return lambda config, folder, columns: _read(config, folder, columns, self.derived)


def _read(config: FilesConfig, folder: Path, columns: list[str], derived: Mapping[str, Derived]) -> Iterator[Block]:
    made = {name: derived[name] for name in columns if name in derived}
    needs = [name for each in made.values() for name in each.needs]
    wanted = dict.fromkeys([name for name in columns if name not in made] + needs)
    for block in read_blocks(config, folder, list(wanted)):
        found = {name: made[name].compute(block) if name in made else block.columns[name] for name in columns}
        yield replace(block, columns=found)


def header(file: Path, *, delimiter: str = ",") -> list[str]:
    """Names in a file's first line, as they stand there.

    Raises:
        DataError: the file cannot be read, or its first line is no text of names.
    """
    try:
        with file.open("rb") as opened:
            line = opened.readline(LONGEST_HEADER)
        return line.decode("utf-8-sig").rstrip("\r\n").split(delimiter)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Give the folder of the official files.") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: the first line is not UTF-8 text. Is this the official, unpacked file?") from None


def require_columns(file: Path, columns: tuple[str, ...]) -> None:
    """Raise a :class:`DataError` unless a CSV file's first line has all ``columns``."""
    lacking = [name for name in columns if name not in header(file)]
    if lacking:
        raise DataError(
            f"{file}: column '{lacking[0]}' of the official layout is missing. It has {', '.join(columns)}. For files "
            "of another layout write a mapping file: hypercast data import MAPPING.yaml --out DATASET"
        )


def no_such_files(source: Path, what: str) -> DataError:
    """The error for a folder that does not hold the official files."""
    where = "holds none of them" if source.is_dir() else "is no folder"
    return DataError(f"{source}: {where}. Give the unpacked folder with {what}, for example --source downloads/folder")
