"""Rows of the matrix that the cluster does not run: what covers them, or why they cannot run here."""

ELSEWHERE = {
    "F3": "workers run Celery's threads pool: there is no pool child that could be killed",
    "F24": "tests/integration/test_disks.py fills the small file system of a worker while it fetches, imports and trains",
    "F28": "no process is broken: tests/integration/test_schedules.py has the nights of summer time",
    "F32": "needs a GPU; tests/unit/test_engine.py raises the error in its place",
    "F34": "no process is broken: tests/unit/test_engine.py lets a loss become NaN",
    "F41": "there is one release so far: no older worker to run beside a newer database",
}
