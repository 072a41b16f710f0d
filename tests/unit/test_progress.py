"""Progress in a terminal and in a log."""

import io

import pytest

from shared.progress import Line, bar, lasting, of_job

RUNNING = {
    "status": "running",
    "x_state": "training",
    "x_progress": {
        "step": 11,
        "total_steps": 44,
        "loss": 2.5,
        "tokens_per_second": 1234.5,
        "eta_seconds": 75,
    },
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_running_job_shows_its_step_loss_speed_and_time_left():
    stage, text = of_job(RUNNING)
    assert stage == "training"
    assert text == f"{bar(0.25)}  step 11/44  loss 2.500  1,234 tokens/s  about 1 min 15 s left"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"status": "queued", "x_state": "queued", "x_queue_position": 3}, "number 3 in the queue"),
        ({"status": "queued", "x_state": "waiting"}, "for the import of its data or base model"),
        ({"status": "succeeded", "x_state": "succeeded", "x_progress": RUNNING["x_progress"]}, ""),
    ],
)
def test_other_states_are_told_in_words(state, says):
    assert of_job(state)[1] == says


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_time_in_words(seconds, words):
    assert lasting(seconds) == words


def test_a_terminal_has_one_line_that_renews_itself():
    out = Terminal()
    line = Line(out)
    for stage in ("fetching", "training"):
        line.show(stage, "")
    line.end()
    assert out.getvalue().count("\n") == 1


def test_a_log_gets_a_line_for_each_stage_and_no_control_characters():
    out = io.StringIO()
    line = Line(out)
    for stage, text in (("fetching", ""), ("training", "step 1"), ("training", "step 2"), ("saving", "")):
        line.show(stage, text)
    line.end()
    assert [said.split()[2] for said in out.getvalue().splitlines()] == ["fetching", "training", "saving"]
    assert "\r" not in out.getvalue()
    assert "\033" not in out.getvalue()
