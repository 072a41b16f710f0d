"""The guards of what is stored: checkpoints, disks, events, and the bits of a resumed run."""

from tests.mutants.guard import Guard

DISKS = "tests/integration/test_disks.py::"
RETENTION = "tests/integration/test_retention.py::"
CHAINS = "tests/integration/test_chains.py::"

GUARDS = [
    Guard(
        "lock of a checkpoint that is given up",
        "who begins to use a checkpoint keeps it",
        "shared/checkpoints.py",
        "alive.with_for_update(skip_locked=not wait)",
        "alive",
        (
            RETENTION + "test_who_begins_to_use_a_checkpoint_keeps_it_or_finds_it_gone",
            RETENTION + "test_a_job_is_not_deleted_from_under_one_that_begins_to_use_its_checkpoint",
        ),
    ),
    Guard(
        "use of a checkpoint",
        "what another job or a schedule names is kept",
        "shared/retention.py",
        """    why |= dict.fromkeys(in_use(db, job.team_id, [point.id for point in stored]), "in use")\n""",
        "",
        (RETENTION + "test_a_checkpoint_that_somebody_needs_is_kept",),
    ),
    Guard(
        "what lies under an adapter",
        "nobody's adapter loses its weights",
        "shared/chains.py",
        "    if above := standing_on(db, db.exec(own).all()).values():",
        "    if above := {}:",
        (CHAINS + "test_a_chain_is_deleted_from_its_end",),
    ),
    Guard(
        "cause of a full disk",
        "a disk that becomes full is no fault of the job",
        "worker/exits.py",
        "if code == DISK_FULL or known.disk_left < NOTHING_LEFT:",
        "if False:",
        (DISKS + "test_a_disk_that_becomes_full_gives_the_job_back_and_no_half_checkpoint_counts",),
    ),
    Guard(
        "promises of the disk",
        "what running attempts are still to write is nobody else's room",
        "worker/disk.py",
        "usage.free - self.floor - self.promised()",
        "usage.free - self.floor",
        (DISKS + "test_what_running_attempts_are_still_to_write_is_nobody_elses_room",),
    ),
    Guard(
        "age of an orphan",
        "what somebody is about to name is not swept",
        "worker/janitor.py",
        'if not known and entry["LastModified"] < now() - retention.GRACE:',
        "if not known:",
        (RETENTION + "test_what_no_row_names_is_swept_once_it_has_lain_there_for_long",),
    ),
    Guard(
        "row as the commit point",
        "a checkpoint exists when its files are stored, not before",
        "worker/store.py",
        """        manifest = self._persist(lambda: storage.put_folder(prefix, place))
        row = {""",
        """        manifest = storage.manifest_of(place)
        self._pool.submit(self._persist, lambda: storage.put_folder(prefix, place))
        row = {""",
        ("tests/integration/test_store.py::test_a_checkpoint_has_no_row_before_its_files_are_stored",),
    ),
    Guard(
        "SHA-256 of what the store gives back",
        "a checkpoint whose bytes changed is not resumed from",
        "shared/storage.py",
        'if get(prefix + entry["name"], path) != entry["sha256"]:',
        'if get(prefix + entry["name"], path) == "":',
        ("tests/integration/test_storage.py::test_a_changed_byte_is_found",),
    ),
    Guard(
        "events are known by lease and number",
        "a line that is sent twice is stored once",
        "shared/events.py",
        "db.exec(insert(Event).values(rows).on_conflict_do_nothing())",
        "db.exec(insert(Event).values(rows))",
        ("tests/integration/test_events.py::test_the_same_lines_twice_are_stored_once",),
    ),
    Guard(
        "seed of each step",
        "a resumed run ends with the weights of one that was never disturbed",
        "worker/engine/loop.py",
        "torch.manual_seed(seed_of(run.attempt.seed, step, places[0]))",
        "pass",
        ("tests/unit/test_resumed.py::test_a_resumed_training_ends_like_an_uninterrupted_one[classification]",),
    ),
]  # fmt: skip
