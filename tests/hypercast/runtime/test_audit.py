"""What is handed to training is remembered, with whatever features the requests are read."""

from hypercast.runtime.audit import AuditedWorkspace
from streaming.dataset import Dataset
from streaming.labels.rate_columns import LabelRateColumns


def test_a_workspace_with_label_rates_keeps_the_same_list(tiny_dataset: Dataset) -> None:
    audited = AuditedWorkspace(tiny_dataset)
    rated = audited.with_label_rates(LabelRateColumns.Config())
    window = tiny_dataset.windows[1]
    assert len(list(rated.learned_in(window))) == len(audited.handed) == 1
    assert len(list(rated.became_known_in(window))) == 1  # to look is not to train
    assert [given for given, _ in audited.handed] == [window]
