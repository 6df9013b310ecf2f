"""The bytes of text files in pieces: unpacked, in UTF-8, with rows of a bounded length.

Nothing here holds more than a piece of a file, whatever the file says of itself.
"""

import codecs
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from streaming.errors import DataError
from streaming.importers.mapping.config import FilesConfig

PIECE = 1 << 20
RATIO_FROM = 16 << 20
"""Unpacked bytes from which on the ratio to the packed ones counts; small files may well pack better."""

NO_TEXT = "\ufdd0"
"""Stands for bytes that are not UTF-8: a character that no text may hold. Rows with it are refused one by one."""

MARK_ERRORS = "hypercast_mark"
codecs.register_error(MARK_ERRORS, lambda error: (NO_TEXT, error.end))  # type: ignore[attr-defined]

SEPARATOR = b"\x1f"
"""Stands for delimiters of more than one character."""


def pieces(path: Path, config: FilesConfig) -> Iterator[bytes]:
    """UTF-8 text of a file, piece by piece.

    Raises:
        DataError: the file cannot be read, its ``.gz`` is truncated, damaged or unpacks to too much, its text is not in
            the encoding, or a row is too long.
    """
    try:
        raw = _unpacked(path, config) if path.suffix == ".gz" else _read(path, min(PIECE, config.max_row_bytes))
        text = _marked(raw) if codecs.lookup(config.csv.encoding).name == "utf-8" else _recoded(path, raw, config)
        yield from _short_rows(path, text, config.max_row_bytes)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Give files that exist and may be read.") from None


def separated(parts: Iterator[bytes], delimiter: bytes) -> Iterator[bytes]:
    """The same text with :data:`SEPARATOR` for a delimiter of several bytes, also where a piece ends within one."""
    rest = b""
    for part in parts:
        text = (rest + part).replace(delimiter, SEPARATOR)
        keep = next((n for n in range(len(delimiter) - 1, 0, -1) if text.endswith(delimiter[:n])), 0)
        rest = text[len(text) - keep :]
        yield text[: len(text) - keep]
    yield rest


def lines(parts: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Whole lines, a list for each piece."""
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        yield whole
    if rest:
        yield [rest]


class PieceReader(io.RawIOBase):
    """Pieces as a file that can be read from, as Arrow wants it.

    Attributes:
        failed: why the pieces ended early. Who reads ahead may take that for the end of the file, and must look here.
    """

    def __init__(self, parts: Iterator[bytes]) -> None:
        self.failed: DataError | None = None
        self._parts = parts
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            try:
                part = next(self._parts, None)
            except DataError as error:
                self.failed = error
                raise
            if part is None:
                return 0
            self._rest = memoryview(part)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def line(self) -> bytes:
        """The next line without its end; later reads go on after it."""
        text = bytearray()
        while part := bytes(self._rest) or next(self._parts, b""):
            head, end, tail = part.partition(b"\n")
            text += head
            self._rest = memoryview(tail)
            if end:
                break
        return bytes(text).rstrip(b"\r")


def _read(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(size), b"")


def _unpacked(path: Path, config: FilesConfig) -> Iterator[bytes]:
    size = min(PIECE, config.max_row_bytes)
    packed = unpacked = 0
    stream = zlib.decompressobj(wbits=31)
    for part in _read(path, 1 << 16):
        packed += len(part)
        full = False  # whether more may come out although nothing is left to go in
        try:
            while part or full:
                if stream.eof:  # the next member of a file of several
                    part, full = part.lstrip(b"\0"), False
                    stream = zlib.decompressobj(wbits=31) if part else stream
                    continue
                piece = stream.decompress(part, size)
                full = len(piece) == size
                part = stream.unused_data if stream.eof else stream.unconsumed_tail
                unpacked += len(piece)
                if unpacked > RATIO_FROM and unpacked > config.max_unpacked_ratio * packed:
                    raise DataError(
                        f"{path}: unpacks to over {config.max_unpacked_ratio:g} times its size, as a zip bomb does. "
                        "If it is what it should be, raise max_unpacked_ratio, for example to 1100."
                    )
                if piece:
                    yield piece
        except zlib.error as error:
            raise DataError(f"{path}: damaged ({error}). Get the file again, or leave it out.") from None
    if not stream.eof:
        raise DataError(f"{path}: ends in the middle of its packed data. Get the whole file, or leave it out.")


def _marked(parts: Iterator[bytes]) -> Iterator[bytes]:
    """UTF-8 without the mark at its beginning, and with :data:`NO_TEXT` for bytes that are none."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors=MARK_ERRORS)
    for part in parts:
        yield decoder.decode(part).encode()
    yield decoder.decode(b"", final=True).encode()


def _recoded(path: Path, parts: Iterator[bytes], config: FilesConfig) -> Iterator[bytes]:
    encoding = config.csv.encoding
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for part in parts:
            yield decoder.decode(part).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise DataError(f"{path}: not text in {encoding} ({error}). Correct csv.encoding, such as utf-8.") from None


def _short_rows(path: Path, parts: Iterator[bytes], limit: int) -> Iterator[bytes]:
    length = 0  # of the row that the piece begins in, so far
    for part in parts:
        end = part.find(b"\n")
        length += len(part) if end < 0 else end
        if length > limit:
            raise DataError(
                f"{path}: a row is longer than {limit} bytes. If it is what it should be, raise max_row_bytes; is it "
                "text at all, and is every quotation closed?"
            )
        if end >= 0:
            length = len(part) - part.rfind(b"\n") - 1
        yield part
