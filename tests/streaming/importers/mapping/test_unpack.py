"""Bytes of text files: whatever is in a file, memory and rows stay bounded and the text is right or refused."""

import gzip
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.errors import DataError
from streaming.importers.mapping.config import FilesConfig
from streaming.importers.mapping.unpack import PIECE, PieceReader, lines, pieces, separated

BYTES = st.lists(st.binary(max_size=12), max_size=12)


def config(**changes: object) -> FilesConfig:
    return FilesConfig.model_validate({"files": ["x"], **changes})


@settings(deadline=None, max_examples=50)
@given(BYTES)
def test_pieces_are_read_as_one_file(parts: list[bytes]) -> None:
    assert io.BufferedReader(PieceReader(iter(parts)), 3).read() == b"".join(parts)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([b"a", b":", b"::", b"b:", b""]), max_size=12))
def test_a_delimiter_is_found_across_pieces(parts: list[bytes]) -> None:
    assert b"".join(separated(iter(parts), b"::")) == b"".join(parts).replace(b"::", b"\x1f")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([b"a", b"\n", b"b\nc", b""]), max_size=12))
def test_lines_are_whole_across_pieces(parts: list[bytes]) -> None:
    found = [line for each in lines(iter(parts)) for line in each]
    assert found == b"".join(parts).splitlines()


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab\n", min_size=1, max_size=50).map(str.encode), min_size=1, max_size=4), st.integers(1, 60))
def test_a_truncated_gz_is_refused_and_a_whole_one_of_several_members_read(
    tmp_path: Path, members: list[bytes], cut: int
) -> None:
    path = tmp_path / "log.csv.gz"
    packed = b"".join(gzip.compress(member) for member in members)
    path.write_bytes(packed)
    assert b"".join(pieces(path, config())) == b"".join(members)
    last = len(gzip.compress(members[-1]))
    path.write_bytes(packed[: len(packed) - 1 - cut % (last - 1)])
    with pytest.raises(DataError, match=r"log\.csv\.gz: (ends in the middle|damaged)"):
        list(pieces(path, config()))


def test_a_damaged_gz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(b"user,item\n1,2\n")
    with pytest.raises(DataError, match=r"log\.csv\.gz: damaged"):
        list(pieces(path, config()))


def test_a_zip_bomb_is_refused_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "bomb.csv.gz"
    line = b"1,2,3\n" * 1000
    with gzip.open(path, "wb") as file:
        for _ in range(8000):  # 48 MB in 150 KB
            file.write(line)
    largest, unpacked = 0, 0
    with pytest.raises(DataError, match="as a zip bomb does"):  # noqa: PT012 - what came before the error counts
        for piece in pieces(path, config()):
            largest, unpacked = max(largest, len(piece)), unpacked + len(piece)
    assert largest <= PIECE
    assert unpacked < 20_000_000
    assert sum(map(len, pieces(path, config(max_unpacked_ratio=1100)))) == 48_000_000


@pytest.mark.parametrize(("limit", "fits"), [(5_000, True), (4_999, False)])
def test_a_row_may_have_so_many_bytes(tmp_path: Path, limit: int, fits: bool) -> None:
    path = tmp_path / "log.csv"
    text = b"a\n" + b"x" * 5_000 + b"\nb\n"
    path.write_bytes(text)
    if fits:
        assert b"".join(pieces(path, config(max_row_bytes=limit))) == text
    else:
        with pytest.raises(DataError, match="a row is longer than 4999 bytes"):
            list(pieces(path, config(max_row_bytes=limit)))


def test_text_comes_in_utf_8_whatever_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for encoding in ("latin-1", "utf-16", "cp1252", "UTF-8"):
        path.write_bytes("Café,Ä\n".encode(encoding))
        assert b"".join(pieces(path, config(csv={"encoding": encoding}))) == "Café,Ä\n".encode()


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes("Café\n".encode("latin-1"))
    with pytest.raises(DataError, match="not text in ascii"):
        list(pieces(path, config(csv={"encoding": "ascii"})))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(pieces(tmp_path / "none.csv", config()))
