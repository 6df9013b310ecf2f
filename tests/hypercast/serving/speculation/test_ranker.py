"""The regression finds what decides, says how likely it is, and stays finite where nothing is uncertain."""

import numpy as np

from hypercast.serving.speculation.ranker import Ranker


def world(rows: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    feature = (random.normal(size=(rows, 3)) * [1, 5, 0] + [0, 3, 2]).astype(np.float32)
    chance = 1 / (1 + np.exp(3 - feature[:, 0]))
    return feature, random.random(rows) < chance, chance


def test_it_finds_the_chances() -> None:
    feature, asked, chance = world()
    said = Ranker.Config().fit(feature, asked, np.ones(len(asked))).chance(feature)
    assert np.corrcoef(said, chance)[0, 1] > 0.97
    assert abs(said.mean() - asked.mean()) < 1e-3


def test_examples_that_were_left_out_count_in_those_that_were_kept() -> None:
    feature, asked, chance = world(40000)
    kept = asked | (np.random.default_rng(1).random(len(asked)) < 0.2)
    ranker = Ranker.Config().fit(feature[kept], asked[kept], np.where(asked[kept], 1.0, 5.0))
    assert abs(ranker.chance(feature).mean() - chance.mean()) < 5e-3


def test_what_is_certain_stays_finite() -> None:
    feature = np.linspace(-1, 1, 50, dtype=np.float32)[:, None]
    said = Ranker.Config().fit(feature, feature[:, 0] > 0, np.ones(50)).chance(feature * 1e6)
    assert np.isfinite(said).all() and said[-1] > 0.99 and said[0] < 0.01
