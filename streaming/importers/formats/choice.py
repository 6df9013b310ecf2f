"""Which formats there are, by the names under which the command line knows them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streaming.importers.formats.criteo import criteo
from streaming.importers.formats.kuairand import kuairand
from streaming.importers.formats.layout import Layout
from streaming.importers.formats.movielens import movielens
from streaming.importers.formats.taobao import taobao


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format: what its folder holds, and how such a folder becomes a layout."""

    files: str
    layout: Callable[[Path], Layout]


FORMATS = {
    "kuairand": Format(files="log_standard_*.csv, user_features_*.csv, video_features_basic_*.csv", layout=kuairand),
    "movielens": Format(files="u.data and u.item, ratings.dat and movies.dat, or ratings.csv", layout=movielens),
    "taobao": Format(files="raw_sample.csv and its attributes, or RecZoo's train.csv and test.csv", layout=taobao),
    "criteo": Format(files="train.txt, or day_0 to day_23", layout=criteo),
}
