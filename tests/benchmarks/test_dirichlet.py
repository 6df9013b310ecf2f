from benchmarks import dirichlet
from benchmarks.options import Options


def test_measures_all_models_over_seeds(monkeypatch):
    monkeypatch.setattr(dirichlet, "RECORDS", 60)
    monkeypatch.setattr(dirichlet, "LENGTH", 12)
    values = dirichlet.measure(Options())
    for at in (10, 50):
        for model in ("transformer", "softmax", "pointwise"):
            key = f"hr{at}_{model}"
            assert 0.0 <= values[f"{key}_min"] <= values[key] <= values[f"{key}_max"] <= values[f"hr{at}_ceiling_max"]
        difference = values[f"hr{at}_pointwise"] - values[f"hr{at}_softmax"]
        assert abs(values[f"hr{at}_pointwise_over_softmax"] - difference) < 3e-5
