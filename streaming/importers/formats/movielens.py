"""MovieLens: ratings of films with their times (Harper and Konstan, ACM TiiS 2015; GroupLens' own terms of use).

Layouts, as the README of each release at https://grouplens.org/datasets/movielens describes it::

    100K           u.data (tabs), u.item and u.user (``|``, Latin-1; genres are 19 columns of 0 and 1)
    1M, 10M        ratings.dat, movies.dat, in 1M also users.dat (``::``; 1M in Latin-1)
    20M and later  ratings.csv, movies.csv

A request is what one user rated at one second; nobody logged what else was shown. The surface is the film's first genre
in the order of the file, the task ``liked`` a rating of 4 or more. A user rates many films in one sitting, often long
after seeing them: the times are those of the rating.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.importers.formats.layout import Derived, Layout, no_such_files
from streaming.importers.mapping.config import (
    AttributeConfig,
    CsvConfig,
    EngagementConfig,
    EntityConfig,
    FilesConfig,
    LabelConfig,
    MappingConfig,
    SurfaceConfig,
    TimeConfig,
    WindowConfig,
)
from streaming.importers.mapping.source import Block

GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
ACTIONS: dict[str, Literal[0, 1]] = {"liked": 1, "disliked": 0}
"""Each rating is one engagement: liked or not."""

SURFACES = {"Children's": "Children", "(no genres listed)": "none_listed"}
"""Genres that are no names of surfaces as they stand."""


def movielens(source: Path) -> Layout:
    """The mapping of a folder of any MovieLens release.

    Raises:
        DataError: it does not hold the official files.
    """
    if (source / "u.data").is_file():
        return _hundred_thousand()
    if (source / "ratings.dat").is_file():
        return _dat(with_users=(source / "users.dat").is_file())
    if (source / "ratings.csv").is_file():
        return _csv()
    raise no_such_files(source, "u.data, ratings.dat or ratings.csv")


def _hundred_thousand() -> Layout:
    people = ["user_id", "age", "gender", "occupation", "zip_code"]
    films = ["movie_id", "title", "release_date", "video_release_date", "url", *GENRES]
    return _layout(
        name="movielens-100k",
        rows=_files("u.data", "\t", ["user_id", "movie_id", "rating", "timestamp"]),
        columns=("user_id", "movie_id", "timestamp"),
        items=_films(_files("u.item", "|", films, encoding="latin-1"), "movie_id", AttributeConfig(column="genre")),
        users=EntityConfig(
            files=_files("u.user", "|", people, encoding="latin-1"),
            id="user_id",
            attributes={name: AttributeConfig(column=name) for name in people[1:4]},
        ),
        window="7d",
    )


def _dat(*, with_users: bool) -> Layout:
    encoding = "latin-1" if with_users else "utf-8"
    people = ["user_id", "gender", "age", "occupation", "zip_code"]
    users = EntityConfig(
        files=_files("users.dat", "::", people, encoding=encoding),
        id="user_id",
        attributes={name: AttributeConfig(column=name) for name in people[1:4]},
    )
    films = _files("movies.dat", "::", ["movie_id", "title", "genres"], encoding=encoding)
    return _layout(
        name="movielens-1m" if with_users else "movielens-10m",
        rows=_files("ratings.dat", "::", ["user_id", "movie_id", "rating", "timestamp"]),
        columns=("user_id", "movie_id", "timestamp"),
        items=_films(films, "movie_id", AttributeConfig(column="genres", first_of="|")),
        users=users if with_users else EntityConfig(),
        window="4w",
    )


def _csv() -> Layout:
    films = FilesConfig(files=["movies.csv"], csv=CsvConfig(newlines_in_values=False))
    return _layout(
        name="movielens",
        rows=FilesConfig(files=["ratings.csv"]),
        columns=("userId", "movieId", "timestamp"),
        items=_films(films, "movieId", AttributeConfig(column="genres", first_of="|")),
        users=EntityConfig(),
        window="4w",
    )


def _layout(
    *,
    name: str,
    rows: FilesConfig,
    columns: tuple[str, str, str],
    items: EntityConfig,
    users: EntityConfig,
    window: str,
) -> Layout:
    user, item, time = columns
    mapping = MappingConfig(
        name=name,
        description="Ratings of films; the surface is a film's first genre, liked is a rating of 4 or more.",
        provenance="MovieLens, https://grouplens.org/datasets/movielens; Harper and Konstan, ACM TiiS 5(4), 2015",
        licence="GroupLens' terms of use: research; no redistribution without permission",
        rows=rows,
        user=user,
        item=item,
        time=TimeConfig(column=time, unit="s"),
        surface=SurfaceConfig(item_attribute="genre", names=SURFACES),
        tasks=[LabelConfig(name="liked", column="rating", at_least=4.0)],
        engagements=[EngagementConfig(action=name, task="liked", label=one) for name, one in ACTIONS.items()],
        items=items,
        users=users,
        windows=WindowConfig(length=window),
    )
    genre = Derived(needs=GENRES, compute=_first_genre)
    return Layout(mapping=mapping, derived={"genre": genre, "release_year": Derived(needs=("title",), compute=_year)})


def _files(name: str, delimiter: str, columns: list[str], *, encoding: str = "utf-8") -> FilesConfig:
    # No file but the CSV ones quotes anything: a title may begin with a quotation mark.
    options = CsvConfig(delimiter=delimiter, columns=columns, encoding=encoding, quote=None)
    return FilesConfig(files=[name], format="csv", csv=options)


def _films(files: FilesConfig, key: str, genre: AttributeConfig) -> EntityConfig:
    attributes = {"genre": genre, "release_year": AttributeConfig(column="release_year")}
    return EntityConfig(files=files, id=key, attributes=attributes)


def _first_genre(block: Block) -> pa.Array:
    """The first of the 19 genres whose column says 1; null where none does."""
    flags = np.stack([np.asarray(pc.equal(block.columns[genre], "1").fill_null(False)) for genre in GENRES], axis=1)
    first = np.where(flags.any(axis=1), flags.argmax(axis=1), -1)
    return pa.array(GENRES).take(pa.array(first, mask=first < 0))


def _year(block: Block) -> pa.Array:
    """The year in brackets at the end of a title; null where there is none."""
    found = pc.extract_regex(block.columns["title"], r"\((?P<year>[0-9]{4})\)\s*$")
    return pc.struct_field(found, "year")
