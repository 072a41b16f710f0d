"""The `burnish` command. Web, worker and beat are started as processes, never imported."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

Handler = Callable[[argparse.Namespace], int | None]


def handler(where: str) -> Handler:
    """A function of `shared.commands` that is imported when it is called: the command starts fast."""
    module, name = where.split(":")

    def call(arguments: argparse.Namespace) -> int | None:
        return getattr(import_module(f"shared.commands.{module}"), name)(arguments)

    return call


def parser() -> argparse.ArgumentParser:
    """Every command with its flags."""
    made = argparse.ArgumentParser(prog="burnish", description="A self-hosted fine-tuning platform.")
    made.add_argument("--version", action="version", version=f"burnish {version('burnish')}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    stack_commands(commands)
    account_commands(commands)
    queue_commands(commands)
    dataset_commands(commands)
    job_commands(commands)
    schedule_commands(commands)
    return made


def command(commands: Any, name: str, where: str, says: str) -> argparse.ArgumentParser:
    """Add a command whose handler is `module:function` of shared.commands."""
    made = commands.add_parser(name, help=says, description=says)
    made.set_defaults(run=handler(where))
    return made


def group(commands: Any, name: str, says: str) -> Any:
    """Add a noun whose verbs follow."""
    made = commands.add_parser(name, help=says, description=says)
    return made.add_subparsers(title="commands", metavar="COMMAND", required=True)


def stack_commands(commands: Any) -> None:
    for name, says in (
        ("up", "Start everything on this machine and stay until Ctrl-C."),
        ("demo", "Start everything and fine-tune a chat model on real dialogue."),
    ):
        made = command(commands, name, f"running:{name}", says)
        made.add_argument("--port", type=int, help="of the web; PORT or 8000 where not given")
        made.add_argument("--host", default="127.0.0.1", help="address that the web listens on (%(default)s)")
        if name == "demo":
            made.add_argument("--once", action="store_true", help="stop at the end and exit by the result")
    web = command(
        commands, "web", "running:web", "Serve the web alone, over the stack that the environment names."
    )
    web.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    web.add_argument("--port", type=int, help="PORT or 8000 where not given")
    web.add_argument("--processes", type=int, default=1, help="gunicorn processes (%(default)s)")
    command(commands, "worker", "running:worker", "Run a worker: it trains, imports and exports.")
    command(commands, "beat", "running:beat", "Run the clock that wakes sweeps and schedules.")
    command(commands, "migrate", "running:migrate", "Bring the database to this version's revision.")
    command(commands, "doctor", "doctor:doctor", "What is running, what is wrong and how to mend it.")


def account_commands(commands: Any) -> None:
    user = group(commands, "user", "People.")
    add = command(
        user, "add", "accounts:add_user", "Add a person, or give one a fresh one-time password (last line)."
    )
    add.add_argument("email")
    add.add_argument("--team", required=True, help="made where it is missing")
    add.add_argument("--role", choices=("viewer", "member", "owner"), default="owner", help="(%(default)s)")
    add.add_argument(
        "--operator", action="store_true", help="may drain workers and set caps; the first person is"
    )
    token = group(commands, "token", "API tokens.")
    create = command(token, "create", "accounts:create_token", "Print a new API token of a team (last line).")
    create.add_argument("--team", required=True, help="made where it is missing")
    create.add_argument("--name", default="", help="to recognise it by")
    create.add_argument("--operator", action="store_true", help="may drain workers and set caps")


def queue_commands(commands: Any) -> None:
    team = group(commands, "team", "Teams, and how much of the machines each may use.")
    cap = command(
        team, "cap", "queue:cap", "Set the most slots that a team, or --all together, may occupy at once."
    )
    cap.add_argument("team", nargs="?", help="its name or id")
    cap.add_argument("--all", action="store_true", help="all teams together")
    cap.add_argument("--compute", metavar="SLOTS", help="a number, or none")
    cap.add_argument("--light", metavar="SLOTS", help="a number, or none")
    command(team, "list", "queue:teams", "What each team occupies, may occupy and used within a day.")
    workers = group(commands, "workers", "The workers that are alive.")
    command(workers, "list", "queue:index", "Slots, devices, state and jobs of each.")
    for name, says in (
        ("drain", "It saves what it does, gives it back and takes no more jobs."),
        ("undrain", "It takes jobs again."),
    ):
        command(workers, name, f"queue:{name}", says).add_argument("id")


def dataset_commands(commands: Any) -> None:
    dataset = group(commands, "dataset", "Datasets.")
    push = command(dataset, "push", "datasets:push", "Upload a file; prints its id (last line).")
    push.add_argument("file")
    push.add_argument("--purpose", default="fine-tune", choices=("fine-tune", "batch"), help="(%(default)s)")


def job_commands(commands: Any) -> None:
    job = group(commands, "job", "Jobs.")
    submit_command(job)
    evaluate = command(
        job,
        "evaluate",
        "jobs:evaluate",
        "Judge models on the rows of a dataset; prints each one's id (last).",
    )
    evaluate.add_argument(
        "--model",
        action="append",
        required=True,
        help="base model, fine-tuned model or checkpoint; repeat it to compare",
    )
    evaluate.add_argument("--dataset", required=True, help="a file to upload, or the id of a file or dataset")
    evaluate.add_argument("--recipe", help="by whose metrics a base model is judged (chat's)")
    evaluate.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="MINE=THEIRS",
        help="the recipe's column and the dataset's",
    )
    evaluate.add_argument("--name", help="what the evaluation is called")
    machine_flags(evaluate)
    evaluate.add_argument("--watch", action="store_true", help="stay until it has finished")
    for name, says in (
        ("watch", "Show a job's progress until it has finished."),
        ("show", "Show a job."),
        ("cancel", "Cancel a job; its checkpoints are kept."),
        ("stop", "End a running training here: it is scored and saved, and has succeeded."),
        ("pause", "Give a job's slot back; it keeps its place to go on from."),
        ("resume", "Go on with a paused job."),
    ):
        command(job, name, f"jobs:{name}", says).add_argument("id")
    priority = command(job, "priority", "jobs:priority", "Move a waiting job within the team's queue.")
    priority.add_argument("id")
    priority.add_argument(
        "priority", type=int, help="from -100 to 100; a step is worth ten minutes of waiting"
    )
    retry = command(
        job, "retry", "jobs:retry", "Submit an ended job again; prints the new one's id (last line)."
    )
    retry.add_argument("id")
    retry.add_argument("--checkpoint", help="go on from it: its id, or last")
    command(job, "list", "jobs:index", "The newest jobs.").add_argument("--limit", type=int, default=20)
    download = command(
        job,
        "download",
        "jobs:download",
        "Download a job's checkpoint or results; goes on where it was cut off.",
    )
    download.add_argument("id")
    download.add_argument("--to", help="folder (the job's id where not given)")
    download.add_argument("--checkpoint", help="its id; the job's best where not given")
    download.add_argument("--form", choices=("merged", "gguf"), help="the full model; one GGUF file")


def machine_flags(made: argparse.ArgumentParser) -> None:
    """What a job needs of its worker, and how long it may run."""
    made.add_argument("--gpus", type=int, help="that its worker must have")
    made.add_argument("--gpu-memory", type=int, metavar="GB", help="that each of them must have")
    made.add_argument("--cpus", type=int, help="cores that its worker must have")
    made.add_argument("--max-hours", type=float, help="then it is stopped, what it has stored kept")


def submit_command(job: Any) -> None:
    submit = command(job, "submit", "jobs:submit", "Submit a training job; prints its id (last line).")
    submit.add_argument("--recipe", default="sft", help="the training method (%(default)s)")
    submit.add_argument(
        "--base-model", help="id, or the name of a fine-tuned model; the recipe's own where not given"
    )
    submit.add_argument("--data", required=True, help="a file to upload, or the id of a file or dataset")
    submit.add_argument("--validation", help="likewise; a part of --data is held out where not given")
    submit.add_argument("--name", default="", help="becomes part of the fine-tuned model's name")
    submit.add_argument("--seed", type=int)
    submit.add_argument("--processes", type=int, help="train it together, each on a share of every step")
    submit.add_argument("--priority", type=int, help="from -100 to 100, within the team's queue")
    machine_flags(submit)
    submit.add_argument("--watch", action="store_true", help="stay until it has finished")
    submit.set_defaults(knobs=True)
    submit.epilog = (
        "The recipe's own knobs are flags too: burnish job submit --recipe sft --knobs lists them."
    )
    submit.add_argument(
        "--knobs", dest="list_knobs", action="store_true", help="list the recipe's knobs and exit"
    )


def schedule_commands(commands: Any) -> None:
    schedule = group(
        commands, "schedule", "Schedules: a job again and again, with the newest version of its data."
    )
    add = command(schedule, "add", "schedules:add", "Add a schedule; prints its id (last line).")
    add.add_argument("name")
    add.add_argument("--cron", required=True, help="such as '30 2 * * *'")
    add.add_argument("--zone", default="UTC", help="time zone, such as Europe/Berlin (%(default)s)")
    add.add_argument("--dataset", required=True, help="id of a dataset, or of one of its files")
    add.add_argument("--recipe", default="sft", help="(%(default)s)")
    add.add_argument("--base-model", help="the recipe's own where not given")
    add.add_argument("--processes", type=int, help="train it together, each on a share of every step")
    add.set_defaults(knobs=True)
    command(schedule, "list", "schedules:index", "Every schedule of the team.")
    for name, says in (
        ("on", "Turn a schedule on."),
        ("off", "Turn it off."),
        ("runs", "Its nominal times and their jobs."),
    ):
        command(schedule, name, f"schedules:{name}", says).add_argument("id")
    command(schedule, "delete", "schedules:delete", "Delete a schedule; its jobs stay.").add_argument("id")


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit: 0 done, 1 failed, 2 not understood, 130 interrupted."""
    made = parser()
    arguments, rest = made.parse_known_args(words)
    if rest and not getattr(arguments, "knobs", False):
        made.error(f"not understood: {' '.join(rest)}")
    arguments.rest = rest
    from shared.commands.failures import spoken

    try:
        code = arguments.run(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as failure:
        sentence = spoken(failure)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)
        sys.exit(1)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
