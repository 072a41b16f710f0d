"""Every reason that a job can fail for has a story with one button; what nobody foresaw gets an honest one."""

import re
from pathlib import Path
from typing import Any

import pytest

from shared.stories import GENERAL, STORIES, story
from shared.tables import Checkpoint, Job, Kind, State
from web.failures import REMEDIES, Case, changes

ROOT = Path(__file__).parents[2]
SAID_BY = ("worker", "shared/recipes", "shared/learning")
SAID_IN = ("shared/budgets.py", "shared/jobs.py", "shared/reaper.py", "shared/recipe.py", "shared/spec.py", "shared/formats.py",
           "shared/datasets.py", "shared/base_models.py", "shared/sampling.py")  # fmt: skip
CODES = (
    r"reason_code=\"([a-z_]+)\"",
    r"\bcode: str = \"([a-z_]+)\"",
    r"Ending\(\s*Outcome\.[A-Z]+,\s*\"([a-z_]+)\"",
    r"Outcome\.FAILED, \"([a-z_]+)\"",
    r"events\.error\(\s*\"([a-z_]+)\"",
    r"str\(error\.get\(\"code\"\) or \"([a-z_]+)\"",
    r"HOST_MEMORY = \"([a-z_]+)\"",
    r"State\.[A-Z]+, actor, \"([a-z_]+)\"",
)
REFUSED = r"\bcode=\"([a-z_]+)\""
NOT_OF_JOBS = {  # answers to a request: no job fails for them
    "forbidden", "in_use", "idempotency_key_reused", "job_is_final", "job_is_not_final", "job_is_not_paused",
    "job_does_not_wait", "checkpoint_in_use", "stopped_early",
}  # fmt: skip


def codes() -> set[str]:
    """Every reason code in the source of what runs jobs and ends them."""
    files = [path for folder in SAID_BY for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / name for name in (*SAID_IN, "shared/errors.py")]
    text = "\n".join(path.read_text() for path in files)
    return {found for pattern in (*CODES, REFUSED) for found in re.findall(pattern, text)}


def failed(code: str | None, **fields: Any) -> Job:
    spec = {"batch_size": 8, "max_length": 512, "learning_rate": 3e-5}
    row: dict[str, Any] = {
        "id": "ftjob-1",
        "kind": Kind.TRAIN,
        "recipe": "sft",
        "state": State.FAILED,
        "spec": spec,
    }
    row |= {"reason_code": code} | fields
    return Job(**row)


def test_the_search_finds_codes_of_every_kind():
    kinds = {"lost", "invalid_value", "hang", "max_run_time", "out_of_memory", "crashed", "user_error", "poison",
             "host_out_of_memory", "dependency_failed", "wrong_type", "export_disagrees"}  # fmt: skip
    assert kinds <= codes()


def test_every_code_has_a_story():
    assert codes() - NOT_OF_JOBS - STORIES.keys() == set()


@pytest.mark.parametrize(
    "code", [*sorted(STORIES), "sigsegv", "exit_code_3", "signal_64", "never_heard_of", None]
)
def test_every_story_is_told_and_has_one_button(code):
    told = story(code)
    assert told.title
    assert told.advice.endswith(".")
    for kind in Kind:
        button = REMEDIES[told.remedy](Case(failed(code, kind=kind)))
        assert button.label
        assert button.address.startswith("/")


def test_an_unknown_code_says_that_no_advice_is_kept_for_it():
    assert story("never_heard_of") is GENERAL
    assert story(None) is GENERAL
    assert "No advice is kept" in GENERAL.advice


def test_what_another_try_changes_goes_by_the_reason():
    assert changes(failed("host_out_of_memory")) == {"batch_size": 4}
    assert changes(failed("host_out_of_memory", spec={"batch_size": 1, "max_length": 64})) == {
        "max_length": 32
    }
    assert changes(failed("out_of_memory")) == {"max_length": 256}
    assert changes(failed("out_of_memory", spec={"batch_size": 8, "max_length": 16})) == {"batch_size": 4}
    assert changes(failed("out_of_memory", spec={"batch_size": 1, "max_length": 16})) == {}
    assert changes(failed("diverged")) == {"learning_rate": 1e-5}
    assert changes(failed("crashed")) == {}


def test_a_training_resumes_where_a_checkpoint_is_and_else_starts_again():
    job, point = failed("poison"), Checkpoint(id="ftckpt_1", step=1240, prefix="x/")
    button = REMEDIES[story("poison").remedy](Case(job, point))
    assert (button.label, button.fields) == ("Resume from step 1,240", {"checkpoint": "ftckpt_1"})
    assert REMEDIES[story("poison").remedy](Case(job)).label == "Try again"


def test_the_button_to_the_form_names_the_field():
    def label(param, code="invalid_value"):
        return REMEDIES[story(code).remedy](Case(failed(code, reason_param=param))).label

    assert label("method.sft.hyperparameters.learning_rate") == "Change «Learning rate»"
    assert label("messages", "wrong_type") == "Choose another column for «messages»"
    assert label("training_file", "invalid_training_file") == "Choose another dataset"
    assert label(None) == "Change the settings"
