"""How a job tells how far it is."""

import sys

from fastdecode.jobs import progress


def test_a_log_gets_a_line_a_minute(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.bar(100, 10, None) as lines:
        for seconds, made in ((30.0, 5), (29.0, 5), (1.0, 10), (30.0, 10), (30.0, 20)):
            now[0] += seconds
            lines.update(made)
    assert capsys.readouterr().err.splitlines() == [
        "30 of 100 items, 0.33 items/s, 210 s left",
        "60 of 100 items, 0.42 items/s, 96 s left",
    ]


def test_a_terminal_gets_a_bar_and_nobody_gets_it_unasked(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.bar(4, 1, None) as bar:
        bar.update(3)
    assert "4/4" in capsys.readouterr().err
    with progress.bar(4, 1, False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
