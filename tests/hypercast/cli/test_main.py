import errno

import pytest

from hypercast.cli import main as command


def test_a_full_disk_is_said_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/demo/part.parquet")

    monkeypatch.setattr(command, "app", full)
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "no space is left on the disk for runs/demo/part.parquet" in said
    assert "Traceback" not in said


def test_other_failures_of_the_system_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(command, "app", broken)
    with pytest.raises(OSError, match="Input/output error"):
        command.main()
