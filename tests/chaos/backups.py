"""A database that knows less than it has said: a standby that misses the last claim, a backup that is older
than the store (F18, F43). Both are copies of the server's files, taken while it is stopped for a moment.
"""

from shared import caps, storage
from shared.db import engine, transaction
from shared.tables import Outcome, Slot, State
from tests.chaos.cluster import WORKERS
from tests.chaos.processes import descendants, living, trainers_of
from tests.chaos.scenario import scenario
from tests.chaos.workload import LONG, MEDIUM, attempts, await_checkpoint, holder, row, stored
from tests.chaos.world import World
from tests.services import until

REFUSED_SECONDS = 10.0  # until a worker that lost its lease has ended its trainer


def cap(slots: int | None) -> None:
    """How many slots all teams together may occupy."""
    with transaction() as db:
        caps.put(db, Slot.COMPUTE, slots)


@scenario(
    "F18",
    "the database goes on as a standby that misses the last claim",
    "claimed again; the first claimant is refused and ends its trainer; it succeeds once",
)
def a_standby_misses_a_claim(world: World) -> None:
    cap(0)
    job = world.submit(LONG)
    with world.cluster.copied_database() as fail_over:
        cap(None)
        await_checkpoint(job)
        claimant = holder(world.cluster, job)
        (first,) = attempts(job)
        trainers = trainers_of(world.cluster.pid(claimant))
        fail_over()
        world.hurt()
    engine().dispose()
    assert (row(job).state, attempts(job), stored(job)) == (State.QUEUED, [], []), "the claim is forgotten"
    until(lambda: not living(trainers), REFUSED_SECONDS, "the refused worker ends its trainer")
    cap(None)
    until(lambda: attempts(job), 10, "it is claimed again")
    (second,) = attempts(job)
    assert (first.number, first.lease_id != second.lease_id) == (second.number, True)
    world.work.await_end([job], 120)
    assert [a.outcome for a in attempts(job)] == [Outcome.SUCCEEDED]
    assert list(storage.listed(f"teams/{job.team}/jobs/{job.id}/")), "what the first one stored harms nothing"


@scenario(
    "F43",
    "the database comes back from a backup, while the store is newer",
    "what ran at the backup goes on from a checkpoint of before it; what the store has beyond it harms nothing",
)
def the_database_comes_from_a_backup(world: World) -> None:
    world.intervals = 20  # events of after the backup are forgotten too
    ran, came_later = world.submit(LONG), None
    await_checkpoint(ran)
    with world.cluster.copied_database() as restore:
        known = stored(ran)[0]
        came_later = world.work.submit(MEDIUM)  # not of `world.jobs`: the backup has never heard of it
        await_checkpoint(came_later)
        await_checkpoint(ran, len(stored(ran)) + 2)
        below = {pid for name in WORKERS for pid in descendants(world.cluster.pid(name))}
        world.cluster.kill_all()
        until(lambda: not living(below), 2, "every trainer is gone")
        restore()
        world.hurt()
    world.cluster.begin_all()
    engine().dispose()
    until(lambda: len(attempts(ran)) == 2, 30, "it is taken over")
    assert attempts(ran)[1].start_step >= known
    world.work.await_end([ran], 120)
    assert list(storage.listed(f"teams/{came_later.team}/jobs/{came_later.id}/")), "orphans are kept"
