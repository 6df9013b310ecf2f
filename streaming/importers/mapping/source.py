"""Rows of Parquet, CSV and JSONL files in blocks of bounded size, each row with its place.

Text files give text: nobody guesses a type from the first rows. Parquet files give what they hold. A row that cannot be
told apart into columns is refused, with its reason, and the others go on.
"""

import csv
import glob
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from streaming.errors import DataError
from streaming.importers.mapping.config import FilesConfig
from streaming.importers.mapping.unpack import NO_TEXT, PIECE, SEPARATOR, PieceReader, lines, pieces, separated

BATCH_ROWS = 1 << 16
CSV_BLOCK = 2 << 20  # Arrow reads up to 32 of them ahead
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A row that is no row: its number in the file, from 0 without the header, why, and what was there."""

    row: int
    reason: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of one file.

    Attributes:
        row: number of each row in its file, from 0 without the header, int64 [n].
        columns: by name, [n] each.
    """

    file: Path
    row: npt.NDArray[np.int64]
    columns: dict[str, pa.Array]
    refused: list[Refused] = field(default_factory=list)


Reader = Callable[[FilesConfig, Path, list[str]], Iterator[Block]]
"""Blocks of all files of a configuration: (files, the folder that relative paths are relative to, columns to read)."""


def read_blocks(config: FilesConfig, folder: Path, columns: list[str]) -> Iterator[Block]:
    """Blocks of every file in the order of their names.

    Raises:
        DataError: there is no such file, or one that is damaged, of an unknown format, or without one of ``columns``.
    """
    for path in paths(config, folder):
        kind = _format(config, path)
        reader = {"csv": _csv_blocks, "jsonl": _jsonl_blocks, "parquet": _parquet_blocks}[kind]
        yield from reader(path, config, columns)


def paths(config: FilesConfig, folder: Path) -> list[Path]:
    """The files of a configuration, each once."""
    found: dict[Path, None] = {}
    for pattern in config.files:
        matches = [pattern]
        if glob.has_magic(pattern):
            matches = sorted(glob.glob(pattern, root_dir=folder, recursive=True))
        files = [folder / match for match in matches if not (folder / match).is_dir()]
        lacking = [file for file in files if not file.exists()]
        if lacking or not files:
            raise DataError(f"{lacking[0] if lacking else folder / pattern}: there is no such file. Correct 'files'.")
        found.update(dict.fromkeys(files))
    return list(found)


def _format(config: FilesConfig, path: Path) -> str:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    kind = config.format or SUFFIXES.get(suffix)
    if kind is None:
        raise DataError(f"{path}: of which format is it? Give 'format': csv, jsonl or parquet.")
    return kind


def _require(path: Path, names: list[str], columns: list[str]) -> None:
    for name in columns:
        if name not in names:
            raise DataError(f"{path}: column '{name}' is missing; there are {_some(names)}. Correct the mapping.")
        if names.count(name) > 1:
            raise DataError(f"{path}: column '{name}' is there {names.count(name)} times. Rename or drop one of them.")


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:40])
    return f"{shown} and {len(names) - 40} more" if len(names) > 40 else shown or "none"


def _csv_blocks(path: Path, config: FilesConfig, columns: list[str]) -> Iterator[Block]:
    options, delimiter = config.csv, config.csv.delimiter
    if path.suffix == ".tsv" and delimiter == ",":
        delimiter = "\t"
    text = pieces(path, config)
    if len(delimiter) > 1 or len(delimiter.encode()) > 1:
        text, delimiter = separated(text, delimiter.encode()), SEPARATOR.decode()
    stream = PieceReader(text)
    names = options.columns if options.columns is not None else _header(path, stream, delimiter, options.quote)
    _require(path, names, columns)
    refused: list[Refused] = []

    def refuse(row: arrow_csv.InvalidRow) -> str:
        reason = f"row has {row.actual_columns} columns, not {row.expected_columns}"
        refused.append(Refused(row=row.number - 1, reason=reason, text=row.text[:1000].replace(NO_TEXT, "\ufffd")))
        return "skip"

    done, number = 0, 0  # invalid rows that numbers have been given around, and the next number
    try:
        batches = arrow_csv.open_csv(
            io.BufferedReader(stream, PIECE),  # it fills every block, so that a row may be longer than a piece
            # One thread: only then does Arrow tell the numbers of the rows that it skips.
            read_options=arrow_csv.ReadOptions(
                column_names=names, block_size=max(CSV_BLOCK, 2 * config.max_row_bytes), use_threads=False
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter,
                quote_char=options.quote or False,
                newlines_in_values=options.newlines_in_values,
                invalid_row_handler=refuse,
            ),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=columns,
                column_types={name: pa.string() for name in columns},
                null_values=options.null_values,
                strings_can_be_null=True,
            ),
        )
        for batch in batches:
            longest = max((pc.max(pc.binary_length(column)).as_py() or 0 for column in batch.columns), default=0)
            if longest > config.max_row_bytes:
                raise DataError(f"{path}: a value has {longest} bytes. Is every quotation closed? Correct csv.quote.")
            skipped = np.array([each.row for each in refused[done:]], dtype=np.int64)
            row = np.arange(number, number + batch.num_rows + len(skipped))
            row = row[~np.isin(row, skipped)][: batch.num_rows]
            number = int(row[-1]) + 1 if len(row) else number
            # Arrow reads ahead: skipped rows behind this batch are told of with the next one.
            told = [each for each in refused[done:] if each.row < number]
            done += len(told)
            yield _readable(
                Block(file=path, row=row, columns=dict(zip(columns, batch.columns, strict=True)), refused=told)
            )
    except pa.ArrowInvalid as error:
        if stream.failed is not None:
            raise stream.failed from None
        if str(error).startswith("Empty CSV"):
            return
        raise DataError(f"{path}: not readable as CSV: {_first_line(error)}. Correct 'csv' in the mapping.") from None
    if stream.failed is not None:
        raise stream.failed
    if refused[done:]:
        nothing = {name: pa.array([], pa.string()) for name in columns}
        yield Block(file=path, row=np.zeros(0, np.int64), columns=nothing, refused=refused[done:])


def _header(path: Path, stream: PieceReader, delimiter: str, quote: str | None) -> list[str]:
    try:
        text = stream.line().decode("utf-8-sig")
        if quote is None:
            names = text.split(delimiter)
        else:
            names = next(csv.reader([text], delimiter=delimiter, quotechar=quote), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: the header line is not UTF-8 text ({error}). Correct csv.encoding.") from None
    if not names:
        raise DataError(f"{path}: there is no header line. Leave the file out, or name its columns by csv.columns.")
    return names


def _readable(block: Block) -> Block:
    """The rows that are text; those that are not are refused."""
    bad = np.zeros(len(block.row), dtype=bool)
    for array in block.columns.values():
        bad |= np.asarray(pc.fill_null(pc.match_substring(array, NO_TEXT), False), dtype=bool)
    if not bad.any():
        return block
    texts = shown({name: array.filter(pa.array(bad)) for name, array in block.columns.items()}).to_pylist()
    refused = [
        Refused(row=row, reason="not UTF-8 text", text=text.replace(NO_TEXT, "\ufffd"))
        for row, text in zip(block.row[bad].tolist(), texts, strict=True)
    ]
    columns = {name: array.filter(pa.array(~bad)) for name, array in block.columns.items()}
    return Block(file=block.file, row=block.row[~bad], columns=columns, refused=block.refused + refused)


def shown(columns: dict[str, pa.Array]) -> pa.Array:
    """Each row as text, at most 1000 characters."""
    parts = []
    for name, array in columns.items():
        text = pc.utf8_slice_codeunits(array.cast(pa.string()), 0, 100)
        parts.append(pc.binary_join_element_wise(f"{name[:100]}=", pc.fill_null(text, "null"), ""))
    return pc.utf8_slice_codeunits(pc.binary_join_element_wise(*parts, "; "), 0, 1000)


def _jsonl_blocks(path: Path, config: FilesConfig, columns: list[str]) -> Iterator[Block]:
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
    number = 0
    rows: list[int] = []
    values: list[list[str | None]] = [[] for _ in columns]
    refused: list[Refused] = []

    def block() -> Block:
        arrays = {name: pa.array(value, pa.string()) for name, value in zip(columns, values, strict=True)}
        return Block(file=path, row=np.array(rows, dtype=np.int64), columns=arrays, refused=refused)

    for each in lines(pieces(path, config)):
        for line in each:
            if line.strip():
                try:
                    text = line.decode()
                    if NO_TEXT in text:
                        raise ValueError("not UTF-8 text")
                    found = decoder.decode(text)
                    cells = [_text(found.get(name)) for name in columns]
                except (ValueError, AttributeError, RecursionError) as error:
                    reason = (
                        "not a JSON object" if isinstance(error, AttributeError) else f"not JSON: {_first_line(error)}"
                    )
                    text = line[:1000].decode(errors="replace")
                    refused.append(Refused(row=number, reason=reason.partition(": line")[0], text=text))
                else:
                    rows.append(number)
                    for column, cell in zip(values, cells, strict=True):
                        column.append(cell)
            number += 1
        if len(rows) + len(refused) >= BATCH_ROWS:
            yield block()
            rows, refused, values = [], [], [[] for _ in columns]
    yield block()


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    raise ValueError("a value that is an object or a list")


def _parquet_blocks(path: Path, config: FilesConfig, columns: list[str]) -> Iterator[Block]:
    number = 0
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            _require(path, file.schema_arrow.names, columns)
            for name in columns:
                kind = file.schema_arrow.field(name).type
                if pa.types.is_nested(kind):
                    raise DataError(f"{path}: column '{name}' holds {kind}, not one value a row. Map another column.")
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False):
                row = np.arange(number, number + batch.num_rows)
                number += batch.num_rows
                yield Block(file=path, row=row, columns={name: _plain(batch.column(name)) for name in columns})
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {_first_line(error)}. Get the file again.") from None


def _plain(array: pa.Array) -> pa.Array:
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type) or pa.types.is_large_string(array.type):
        return array.cast(pa.string())
    return array


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
