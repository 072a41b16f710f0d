"""Jobs as these tests submit them, and what earlier attempts of theirs have left."""

import hashlib
import json

from shared import jobs, storage
from shared.db import transaction
from shared.jobs import Order
from shared.tables import Artifact, Kind, Ready
from tests.factories import a_base_model, a_dataset, a_file


def submitted(team, tiny, **hyperparameters):
    """A training of the tiny model; an adapter unless told otherwise."""
    knobs = {
        "epochs": 2,
        "batch_size": 4,
        "max_length": 64,
        "learning_rate": 1e-3,
        "lora_rank": 4,
        "checkpoints": 2,
    }
    with transaction() as db:
        model, version = a_base_model(db, tiny), a_dataset(db, team)
        order = Order(
            team_id=team.id,
            recipe="sft",
            model=model.id,
            dataset_version_id=version.id,
            hyperparameters=knobs | hyperparameters,
            seed=7,
        )
        return jobs.submit(db, order)


def questions(team, trained, count, **knobs):
    """A job that asks that many questions."""
    rows = [{"messages": [{"role": "user", "content": f"What is {n}?"}]} for n in range(count)]
    with transaction() as db:
        order = Order(
            team_id=team.id,
            kind=Kind.INFER,
            model=trained.best_checkpoint_id,
            dataset_version_id=a_dataset(db, team, rows).id,
            columns={"messages": "messages"},
            hyperparameters=knobs,
        )
        return jobs.submit(db, order)


def batch(team, trained, lines):
    """A job that answers a batch file of these lines."""
    data = "\n".join(json.dumps(line) for line in lines).encode()
    with transaction() as db:
        file = a_file(db, team, data, "batch.jsonl", "batch")
        endpoint = {"endpoint": "/v1/chat/completions"}
        order = Order(
            team_id=team.id,
            kind=Kind.INFER,
            model=trained.best_checkpoint_id,
            file_id=file.id,
            asked=endpoint,
        )
        return jobs.submit(db, order)


def request(custom_id, **body):
    """A line of a batch file."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def a_shard(job, number, lines, **media):
    """A shard as an attempt before has stored it."""
    prefix = f"teams/{job.team_id}/jobs/{job.id}/1-before/shard-{number:06d}/"
    files = {"answers.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()} | media
    for name, data in files.items():
        storage.put_bytes(prefix + name, data)
    manifest = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]
    with transaction() as db:
        db.add(
            Artifact(
                team_id=job.team_id,
                job_id=job.id,
                form=f"shard-{number:06d}",
                state=Ready.READY,
                prefix=prefix,
                manifest=manifest,
                bytes=1,
            )
        )
    return prefix


def told(said):
    """What a shard holds for a request that was answered with that."""
    return {"content": said, "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}
