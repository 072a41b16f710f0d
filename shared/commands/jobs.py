"""job submit, evaluate, watch, show, list, cancel, stop, pause, resume, priority, retry, download."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared import progress
from shared.client import Api, connect, fetch
from shared.commands import evaluations, knobs
from shared.commands.datasets import id_of
from shared.errors import Refused

LOOK_SECONDS = 0.5
JOBS = "/fine_tuning/jobs"


def submit(arguments: argparse.Namespace) -> int:
    """Submit a training job; its id is the last line (with --watch, its end follows)."""
    from shared import recipe as recipes

    recipe = recipes.get(arguments.recipe)
    if arguments.list_knobs:
        knobs.parser(recipe).print_help()
        return 0
    asked = knobs.read(recipe, arguments.rest)
    api = connect()
    body = {
        "model": arguments.base_model or recipe.default_base_model,
        "training_file": id_of(api, arguments.data),
        "validation_file": id_of(api, arguments.validation) if arguments.validation else None,
        "method": knobs.method(recipe, asked),
        "suffix": arguments.name or None,
        "seed": arguments.seed,
        "resources": needs(arguments) or None,
        "x_priority": arguments.priority,
        "x_max_run_seconds": run_seconds(arguments),
    }
    job = api.post(JOBS, {name: value for name, value in body.items() if value is not None})
    print(f"Submitted; its page: {job['x_page']}")
    print(job["id"], flush=True)
    return follow(api, job["id"]) if arguments.watch else 0


def needs(arguments: argparse.Namespace) -> dict[str, int]:
    """What the job needs of a worker, where it was said."""
    asked = {
        "processes": getattr(arguments, "processes", None),
        "gpus": arguments.gpus,
        "gpu_memory_gb": arguments.gpu_memory,
        "cpus": arguments.cpus,
    }
    return {name: value for name, value in asked.items() if value is not None}


def run_seconds(arguments: argparse.Namespace) -> int | None:
    """How long it may run, where it was said."""
    return round(arguments.max_hours * 3600) if arguments.max_hours else None


def evaluate(arguments: argparse.Namespace) -> int:
    """Judge one model or more on a dataset; the last lines are the ids, in the order of the models (with --watch
    their ends follow).
    """
    api = connect()
    body = {
        "models": arguments.model,
        "dataset": id_of(api, arguments.dataset),
        "recipe": arguments.recipe,
        "columns": dict(map(evaluations.pair, arguments.column)) or None,
        "name": arguments.name,
        "resources": needs(arguments) or None,
        "x_max_run_seconds": run_seconds(arguments),
    }
    made = api.post(
        evaluations.EVALUATIONS, {name: value for name, value in body.items() if value is not None}
    )
    together = made["comparison"]
    print(f"Submitted; its page: {(together or made)['x_page']}")
    ids = together["evaluations"] if together else [made["id"]]
    print("\n".join(ids), flush=True)
    if not arguments.watch:
        return 0
    return max(follow(api, one) for one in ids)


def watch(arguments: argparse.Namespace) -> int:
    """Show progress until the job has finished; exits by its result."""
    return follow(connect(), arguments.id)


def follow(api: Api, job_id: str) -> int:
    """Watch, then say how it went: 0 where the job succeeded."""
    job = until_final(api, job_id)
    if job["status"] == "succeeded" and job["object"] == "evaluation":
        evaluations.tell(job)
        return 0
    if job["status"] == "succeeded":
        print(f"succeeded: {job['fine_tuned_model']}")
        for name, value in (job["x_scores"].get("tuned") or {}).items():
            before = (job["x_scores"].get("base") or {}).get(name)
            print(f"  {name:<16} {progress.score(before):>10} → {progress.score(value)}")
        return 0
    reason = (job.get("error") or {}).get("message") or ""
    print(f"{job['status']}: {reason}".rstrip(": "))
    return 1


def address(job_id: str) -> str:
    """Where the API has that job."""
    kind = evaluations.EVALUATIONS if job_id.startswith(evaluations.PREFIX) else JOBS
    return f"{kind}/{job_id}"


def until_final(api: Api, job_id: str, tend: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The job once it has finished, its progress shown meanwhile. `tend` is called between looks."""
    line = progress.Line()
    while True:
        tend()
        job = api.get(address(job_id))
        stage, text = progress.of_job(job)
        line.show(stage, text)
        if job["status"] in progress.FINAL:
            line.end()
            return job
        time.sleep(LOOK_SECONDS)


def show(arguments: argparse.Namespace) -> None:
    """The job as the API gives it."""
    print(json.dumps(connect().get(address(arguments.id)), indent=2, ensure_ascii=False))


def index(arguments: argparse.Namespace) -> None:
    """The newest jobs, a line each."""
    for job in connect().get(JOBS, limit=arguments.limit)["data"]:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(job["created_at"]))
        print(f"{job['id']}  {made}  {job['status']:<16} {job['method']['type']:<16} {job['model']}")


def cancel(arguments: argparse.Namespace) -> None:
    """Ask for the end of a job."""
    job = connect().post(f"{address(arguments.id)}/cancel")
    print(f"{job['id']} is {job['status']}.")


def stop(arguments: argparse.Namespace) -> None:
    """Ask for an early end that counts."""
    tell(arguments.id, "stop")


def pause(arguments: argparse.Namespace) -> None:
    """Ask for the slot back."""
    tell(arguments.id, "pause")


def resume(arguments: argparse.Namespace) -> None:
    """Queue it again."""
    tell(arguments.id, "resume")


def priority(arguments: argparse.Namespace) -> None:
    """Move it within the queue."""
    tell(arguments.id, "priority", {"priority": arguments.priority})


def tell(job_id: str, verb: str, body: dict[str, Any] | None = None) -> None:
    """Do that to a training job, and say what it is now."""
    job = connect().post(f"{JOBS}/{job_id}/{verb}", body)
    place = f", number {job['x_queue_position']} in the queue" if job["x_queue_position"] else ""
    print(f"{job['id']} is {job['x_state']}{place}.")


def retry(arguments: argparse.Namespace) -> None:
    """Submit it again; the new id is the last line."""
    body = {"checkpoint": arguments.checkpoint} if arguments.checkpoint else {}
    job = connect().post(f"{JOBS}/{arguments.id}/retry", body)
    print(f"Submitted; its page: {job['x_page']}")
    print(job["id"])


def download(arguments: argparse.Namespace) -> None:
    """The files of a checkpoint, into a folder that `from_pretrained` takes; those of an evaluation."""
    api = connect()
    if arguments.id.startswith(evaluations.PREFIX):
        evaluations.download(api, arguments.id, arguments.to)
        return
    job = api.get(f"{JOBS}/{arguments.id}")
    checkpoint = arguments.checkpoint or best(api, job)
    query = {"form": arguments.form} if arguments.form else {}
    line = progress.Line()

    def files() -> list[dict[str, Any]]:
        return built(api, f"{JOBS}/{job['id']}/checkpoints/{checkpoint}/files", query, line)

    folder = Path(arguments.to or job["id"])
    got = fetch(files, folder, lambda *moved: line.show(*progress.of_bytes(*moved)))
    line.end()
    print(f"{len(got)} files of {checkpoint} in")
    print(folder)


def best(api: Api, job: dict[str, Any]) -> str:
    """The id of the checkpoint that the job's fine-tuned model is. Raises Refused where there is none."""
    checkpoints = list(api.every(f"{JOBS}/{job['id']}/checkpoints"))
    if not checkpoints:
        raise Refused(f"{job['id']} is {job['status']} and has no checkpoint yet.")
    return next((one["id"] for one in checkpoints if one.get("x_best")), checkpoints[0]["id"])


def built(api: Api, path: str, query: dict[str, str], line: progress.Line) -> list[dict[str, Any]]:
    """The files once they are ready. Raises Refused where they could not be made."""
    while (answer := api.get(path, **query))["x_status"] == "building":
        line.show("building", "")
        time.sleep(LOOK_SECONDS)
    if answer["x_status"] == "failed":
        raise Refused(f"The files could not be made: {answer.get('x_error') or 'see the job page'}")
    return answer["data"]
