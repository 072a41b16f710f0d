"""What has become of jobs so far, for tests with a worker in this process."""

import hashlib
import json
import subprocess
import threading

from sqlmodel import col, select

from shared import checkpoints, storage
from shared.db import transaction
from shared.tables import Artifact, Attempt, Event, EventType, File, Job, Slot


def again(job_id):
    """The job as it is now."""
    with transaction() as db:
        return db.get_one(Job, job_id)


def attempts(job_id):
    """Its attempts, the first one first."""
    with transaction() as db:
        return db.exec(select(Attempt).where(Attempt.job_id == job_id).order_by(col(Attempt.number))).all()


def kept(job_id):
    """Its checkpoints, the newest first."""
    with transaction() as db:
        return checkpoints.of(db, job_id)


def steps(job_id):
    """The steps that it has told of."""
    with transaction() as db:
        return [
            e.step for e in db.exec(select(Event).where(Event.job_id == job_id, Event.type == EventType.STEP))
        ]


def events_of(lease_id):
    """What that attempt has told, in its order."""
    with transaction() as db:
        return db.exec(select(Event).where(Event.lease_id == lease_id).order_by(col(Event.seq))).all()


def weights(job_id):
    """{name: sha256} of the last checkpoint's servable weights."""
    with transaction() as db:
        last = checkpoints.of(db, job_id)[0]
    return {
        e["name"]: hashlib.sha256(storage.read(last.prefix + e["name"])).hexdigest()
        for e in last.manifest
        if e["name"].startswith("servable/") and e["name"].endswith(".safetensors")
    }


def answers(job_id):
    """{form: the lines of that artifact}."""
    with transaction() as db:
        made = db.exec(select(Artifact).where(Artifact.job_id == job_id)).all()
        keys = {one.form: db.get_one(File, one.file_id).key for one in made if one.file_id}
    return {form: [json.loads(line) for line in storage.read(key).splitlines()] for form, key in keys.items()}


def in_background(machine):
    """A thread in which the worker looks for a job that computes, and runs it."""
    thread = threading.Thread(target=machine.look, args=(Slot.COMPUTE,))
    thread.start()
    return thread


def trainer_pid(machine):
    """The process that the zygote forked."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(machine.zygote.process.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(children.stdout.split()[0])
