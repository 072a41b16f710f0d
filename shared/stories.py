"""What a reason code means to people: what happened, what to do, and the name of the remedy that does it.

`STORIES` has every reason code that the code can give; a code that it lacks gets `GENERAL`. The job's page
makes a button of the remedy (`web.failures`), an e-mail tells the advice.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Story:
    """What a reason code means to people."""

    title: str
    advice: str
    remedy: str  # try_again, go_on, change, mend, to_cause, to_source


RESUME = "It goes on from its newest checkpoint, if it has stored one; else it starts over."
GENERAL = Story(
    "It failed",
    "No advice is kept for this reason. Read the end of its log, mend what it names, then try again.",
    "go_on",
)
DATA = Story(
    "The rows do not fit what it should learn",
    "Choose other columns or another dataset, or upload a new version with these rows mended.",
    "mend",
)
SETTINGS = Story(
    "A setting cannot be used", "Change the setting that is named here, then start again.", "mend"
)
FILE = Story(
    "The file cannot be read", "Mend the file as it says here, then upload it as a new version.", "to_source"
)
MODEL = Story(
    "The model cannot be used", "Choose another model, or upload a mended one under Models.", "to_source"
)
CRASH = Story(
    "The trainer died",
    f"The end of its log says more; it died again each time that it was tried. {RESUME}",
    "go_on",
)

STORIES: dict[str, Story] = {
    "out_of_memory": Story(
        "The device's memory is too small",
        "The trainer tried single rows and still had no room: shorter rows need less, and so does an adapter.",
        "change",
    ),
    "host_out_of_memory": Story(
        "The machine ran out of memory",
        "The kernel killed the trainer. A smaller batch needs less; so do shorter rows and fewer jobs at once.",
        "change",
    ),
    "diverged": Story(
        "The training diverged",
        "The steps were too large. Start again with a lower learning rate; a longer warm-up helps too.",
        "change",
    ),
    "cancelled": Story("It was cancelled", f"Its checkpoints are kept. {RESUME}", "go_on"),
    "stopped": Story("It was stopped", f"Its checkpoints are kept. {RESUME}", "go_on"),
    "disk_full": Story(
        "It filled the worker's disk",
        f"Free some space there (`burnish doctor` shows how much there is), or save fewer checkpoints. {RESUME}",
        "go_on",
    ),
    "disk_too_small": Story(
        "No worker's disk is large enough",
        "Choose a smaller model or dataset, or give a worker a larger disk. Then start again.",
        "mend",
    ),
    "no_room": Story(
        "There was no room on the worker's disk",
        f"Free some space there (`burnish doctor` shows how much there is). {RESUME}",
        "go_on",
    ),
    "infrastructure": Story(
        "Workers lost it too often",
        f"Look at the workers on the queue page first. {RESUME}",
        "go_on",
    ),
    "lost": Story("The worker went away", f"Check on the queue page that a worker is up. {RESUME}", "go_on"),
    **dict.fromkeys(
        ("released", "drain", "pause"),
        Story("The worker gave it back", f"Check on the queue page that a worker is up. {RESUME}", "go_on"),
    ),
    "worker_error": Story(
        "The worker made a mistake",
        f"This is no fault of the job; the worker's own log says more. {RESUME}",
        "go_on",
    ),
    "zygote": Story(
        "The worker could not start trainers", f"Restart that worker; its log says why. {RESUME}", "go_on"
    ),
    "poison": Story(
        "It crashed twice in a row",
        "A row or a setting brings the trainer down there. Read the end of the log; change what it names. Resumed as"
        " it is, it crashes again unless the worker was at fault.",
        "go_on",
    ),
    "crashed": CRASH,
    "hang": Story(
        "It hung",
        f"The log shows what it did last. If it hangs there again, look at the worker's device. {RESUME}",
        "go_on",
    ),
    "max_run_time": Story(
        "It took longer than it may",
        f"Allow it a longer run on the form if it needs one. {RESUME} The new job may run as long as this one.",
        "go_on",
    ),
    "no_checkpoint": Story("It ended without a model", "Nothing was stored. Read the log, then try again.", "try_again"),
    "dependency_failed": Story(
        "What it waited for failed",
        "Mend that first; then try this one again.",
        "to_cause",
    ),
    "export_disagrees": Story(
        "The exported model differs from the trained one",
        "It was not kept, as its answers would differ. Choose another form of the checkpoint.",
        "to_source",
    ),
    "package_missing": Story(
        "The worker lacks a package", "Install the package that is named here on the worker, then try again.", "try_again"
    ),
    "not_found": Story(
        "Something that it needs is gone", "Choose what is there in its place, then start again.", "mend"
    ),
    **dict.fromkeys(
        (
            "ambiguous", "context_length_exceeded", "dataset_not_ready", "empty", "invalid_input",
            "invalid_training_file", "misplaced", "missing_column", "unknown_column", "wrong_length", "wrong_type",
        ),
        DATA,
    ),
    **dict.fromkeys(
        (
            "bad_column", "duplicate_column", "empty_file", "file_too_large", "invalid_file_content",
            "invalid_file_format", "invalid_json_line", "too_many_rows", "unsupported_format",
        ),
        FILE,
    ),
    **dict.fromkeys(
        (
            "invalid_value", "missing_required_parameter", "unknown_parameter", "unsupported_parameter", "user_error",
        ),
        SETTINGS,
    ),
    **dict.fromkeys(("hub_not_allowed", "invalid_model", "model_does_not_fit", "model_not_found"), MODEL),
}  # fmt: skip


def story(code: str | None) -> Story:
    """The story of a code; deaths by signal and exit code are one."""
    code = code or ""
    if code.startswith(("sig", "exit_code_")):
        return CRASH
    return STORIES.get(code, GENERAL)
