"""Room on the disks of workers: what a worker tells of its own, what jobs need, and the sentences about both.

A worker's row says in bytes: `free` of its data folder's disk, the `floor` that it leaves free, the `total` of the
disk, and the `room` that it could give to a job: what is free above the floor and not promised to running
attempts, and what its cache would give up.
"""

from collections.abc import Iterable

from shared.tables import Job, Worker

GIB = 1024**3
UNTOLD = -1  # an older worker, which says nothing of its disk

HAS_ROOM = "(:room < 0 OR coalesce(j.disk_bytes, 0) <= :room)"  # the same as `has`, for the claim


def of(worker: Worker) -> int:
    """The bytes that a job finds there at most; `UNTOLD`."""
    return worker.disk.get("room", UNTOLD)


def has(worker: Worker, job: Job) -> bool:
    """Whether the job would find room there now."""
    return of(worker) == UNTOLD or (job.disk_bytes or 0) <= of(worker)


def ever(workers: Iterable[Worker]) -> int | None:
    """The most that any of these disks could hold if nothing else were on it; None: one does not say."""
    told = [worker.disk for worker in workers]
    if not all(told):
        return None
    return max((disk["total"] - disk["floor"] for disk in told), default=0)


def short(disk: dict[str, int]) -> bool:
    """Whether less is free than the floor."""
    return disk["free"] < disk["floor"]


def why_short(disk: dict[str, int], host: str) -> str:
    """Why the worker claims nothing: «has stopped claiming: 0.8 GiB free of its 5 GiB floor …»."""
    free, floor = gib(disk["free"]), gib(disk["floor"])
    return f"has stopped claiming: {free} free of its {floor} floor. Free space on {host}"


def lacking(job: Job, able: Iterable[Worker]) -> str:
    """That no worker which could run the job has room for it, in a sentence."""
    roomiest = max(able, key=of)
    return (
        f"It needs about {gib(job.disk_bytes or 0)} of disk, and {gib(max(0, of(roomiest)))} are to be had on the"
        f" worker with the most room, {roomiest.host}. It starts once there is room: free space there."
    )


def gib(count: float) -> str:
    """«0.8 GiB», «5 GiB», «12 MiB»."""
    size, unit = (count / GIB, "GiB") if count >= GIB / 10 else (count / 1024**2, "MiB")
    return f"{size:.1f}".removesuffix(".0") + f" {unit}"
