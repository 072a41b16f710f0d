"""Every guard, each with the edit that removes it and the tests that must notice, in the order of the published table."""

from tests.mutants import jobs, notifications, storage, walls

GUARDS = [*jobs.GUARDS, *storage.GUARDS, *walls.GUARDS, *notifications.GUARDS]
