from __future__ import annotations

import io

import pytest

from mogao_jax.training import progress as progress_lib

VALUES = {"loss": 3.25, "ntp_loss": 2.0, "flow_loss": 1.25, "tokens_per_second": 12345.6}


def _progress(terminal, start=0.0, clock=None):
    stream = io.StringIO()
    now = clock or [0.0]
    progress = progress_lib.Progress(
        200, start=start, stream=stream, terminal=terminal, clock=lambda: now[0]
    )
    return progress, stream, now


def test_plain_lines_only_when_there_are_new_numbers():
    progress, stream, now = _progress(terminal=False)
    now[0] = 10.0
    progress.update(1, 0.005)
    assert stream.getvalue() == ""
    now[0] = 50.0
    progress.update(50, 0.25, VALUES)
    progress.write("saved")
    progress.close()
    assert stream.getvalue() == (
        " 25% step 50/200  loss 3.2500  ntp 2.0000  flow 1.2500  tok/s 12,346  left 2:30\nsaved\n"
    )


def test_bar_shows_the_same_numbers():
    progress, stream, now = _progress(terminal=True)
    with progress:
        now[0] = 50.0
        progress.update(50, 0.25, VALUES)
        progress.write("saved")
    shown = stream.getvalue()
    assert " 25%|" in shown and "saved\n" in shown
    assert "step 50/200  loss 3.2500  ntp 2.0000  flow 1.2500  tok/s 12,346  left 2:30" in shown


def test_a_terminal_is_recognised():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, expected in ((Terminal(), True), (io.StringIO(), False)):
        progress = progress_lib.Progress(10, stream=stream)
        progress.update(1, 0.1)
        progress.close()
        assert bool(stream.getvalue()) == expected


def test_time_left_counts_from_where_this_process_began():
    progress, _, now = _progress(terminal=False, start=0.5)
    assert progress.seconds_left(0.5) is None
    now[0] = 30.0
    assert progress.seconds_left(0.75) == pytest.approx(30.0)
    assert progress.seconds_left(1.0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (3.2, "0:04"), (200, "3:20"), (7384, "2:03:04")]
)
def test_durations(seconds, text):
    assert progress_lib.duration(seconds) == text


def test_the_last_step_is_estimated_where_the_clock_ends_the_run():
    progress, _, _ = _progress(terminal=False)
    assert progress.text(31, 0.25).startswith("step 31/~124 ")
    assert progress.text(50, 0.25).startswith("step 50/200 ")
    assert progress.text(0, 0.0).startswith("step 0/200 ")
