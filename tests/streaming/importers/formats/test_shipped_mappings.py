"""The mapping files in configs/data, on small folders in the layout that they are for."""

from pathlib import Path

import pytest

from streaming.config import load
from streaming.importers.formats.layout import Layout
from streaming.importers.mapping.config import MappingConfig
from tests.streaming.importers.formats import official
from tests.streaming.importers.formats.imports import import_layout

CONFIGS = Path(__file__).parents[4] / "configs" / "data"


def recbole_100k(folder: Path) -> Path:
    """MovieLens-100K in RecBole's atomic files: types behind the names, genres with spaces between them."""
    rating = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    official.write(folder / "ml-100k.inter", [rating, *map(list, official.RATINGS)], delimiter="\t")
    film = ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]
    films = [[film_id, title, 1990 + film_id, " ".join(genres)] for film_id, title, genres in official.FILMS]
    official.write(folder / "ml-100k.item", [film, *films], delimiter="\t")
    person = ["user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"]
    people = [[user, 30, "F", "writer", "00000"] for user in range(1, 6)]
    official.write(folder / "ml-100k.user", [person, *people], delimiter="\t")
    return folder


@pytest.mark.parametrize("name", sorted(file.name for file in CONFIGS.iterdir()))
def test_each_is_a_mapping(name: str) -> None:
    assert load(CONFIGS / name, MappingConfig).name


def test_movielens_100k(tmp_path: Path) -> None:
    source = recbole_100k(tmp_path / "source")
    text = (source / "ml-100k.item").read_text() + '8\t"Quoted\t1999\tWar\n9\tNine\t1999\tMusical Drama\n'
    (source / "ml-100k.item").write_text(text)
    with (source / "ml-100k.inter").open("a") as file:
        file.write("1\t8\t5\t880000000\n2\t9\t2\t880000000\n")
    mapping = load(CONFIGS / "movielens_100k.yaml", MappingConfig)
    made = import_layout(Layout(mapping=mapping), source, tmp_path / "dataset")
    assert len(made.candidates) == len(made.engagements) == len(official.RATINGS) + 2
    assert {row["surface"] for row in made.candidates if row["item_id"] in (8, 9)} == {"other"}
    assert {row["surface"] for row in made.candidates if row["item_id"] == 1} == {"Animation"}
    liked = {(row["user_id"], row["item_id"], row["time"]) for row in made.candidates if row["label_liked"]}
    assert liked == {
        (row["user_id"], row["item_id"], row["time"]) for row in made.engagements if row["action"] == "liked"
    }
    assert made.entity("items")[9]["genre"] == "Musical"
