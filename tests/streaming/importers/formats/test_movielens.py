from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from streaming.errors import DataError
from streaming.importers.formats.movielens import movielens
from tests.streaming.importers.formats import official
from tests.streaming.importers.formats.imports import import_layout

RELEASES = [official.movielens_100k, official.movielens_1m, official.movielens_25m]
GENRE = {film: genres[0] for film, _, genres in official.FILMS}
YEAR = {1: "1995", 2: "1994", 3: "2001", 4: None, 5: "1971", 6: "1999", 7: "1995"}


@pytest.mark.parametrize("release", RELEASES)
def test_every_rating_is_one_candidate_on_its_films_first_genre(
    release: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = release(tmp_path / "source")
    made = import_layout(movielens(source), source, tmp_path / "dataset")
    found = {(row["user_id"], row["item_id"], row["time"]): row for row in made.candidates}
    assert len(found) == len(made.candidates) == len(official.RATINGS)
    for user, film, rating, second in official.RATINGS:
        row = found[user, film, datetime.fromtimestamp(second, UTC)]
        assert row["surface"] == GENRE[film]
        assert row["label_liked"] == (rating >= 4)
    films = made.entity("items")
    assert {film: row["release_year"] for film, row in films.items()} == YEAR
    assert {film: row["genre"] for film, row in films.items()} == GENRE


@pytest.mark.parametrize("release", RELEASES)
def test_each_rating_is_one_engagement_liked_or_not(release: Callable[[Path], Path], tmp_path: Path) -> None:
    source = release(tmp_path / "source")
    made = import_layout(movielens(source), source, tmp_path / "dataset")
    found = sorted((row["user_id"], row["item_id"], row["action"], row["time"]) for row in made.engagements)
    assert found == sorted(
        (user, film, "liked" if rating >= 4 else "disliked", datetime.fromtimestamp(second, UTC))
        for user, film, rating, second in official.RATINGS
    )


def test_all_releases_make_the_same_candidates(tmp_path: Path) -> None:
    def essence(release: Callable[[Path], Path]) -> list[tuple[object, ...]]:
        source = release(tmp_path / release.__name__)
        made = import_layout(movielens(source), source, tmp_path / f"{release.__name__}.dataset")
        return sorted(
            (row["time"], row["user_id"], row["item_id"], row["surface"], row["label_liked"], tuple(row["dense"]))
            for row in made.candidates
        )

    first, second, third = (essence(release) for release in RELEASES)
    assert first == second == third


@pytest.mark.parametrize("release", RELEASES[:2])
def test_users_have_attributes_where_the_release_has_them(release: Callable[[Path], Path], tmp_path: Path) -> None:
    source = release(tmp_path / "source")
    users = import_layout(movielens(source), source, tmp_path / "dataset").entity("users")
    assert [users[user]["gender"] for user in (1, 2)] == ["F", "M"]


def test_a_genre_that_is_no_name_gets_one(tmp_path: Path) -> None:
    source = official.movielens_1m(tmp_path / "source")
    films = [[film, f"Film {film} (2000)", "Children's|War"] for film in range(1, 8)]
    official.write(source / "movies.dat", films, delimiter="::")
    made = import_layout(movielens(source), source, tmp_path / "dataset")
    assert made.dataset.config.surfaces == ["Children"]
    assert made.entity("items")[1]["genre"] == "Children's"


def test_ten_million_has_no_users_and_other_text(tmp_path: Path) -> None:
    source = official.movielens_1m(tmp_path / "source")
    (source / "users.dat").unlink()
    films = [[film, title, "|".join(genres)] for film, title, genres in official.FILMS]
    official.write(source / "movies.dat", films, delimiter="::", encoding="utf-8")
    made = import_layout(movielens(source), source, tmp_path / "dataset")
    assert made.dataset.config.user_attributes == []
    assert made.entity("items")[2]["release_year"] == "1994"


def test_films_that_are_missing_are_one_error(tmp_path: Path) -> None:
    source = official.movielens_100k(tmp_path / "source")
    (source / "u.item").unlink()
    with pytest.raises(DataError, match=r"u\.item: there is no such file"):
        import_layout(movielens(source), source, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()
