"""The guards of the queue and of the trainer's walls, each with the edit that removes it and the tests that
must notice. `python -m tests.mutants` tries them.
"""

from dataclasses import dataclass

JOBS = "tests/integration/test_jobs.py::"
BUDGETS = "tests/integration/test_budgets.py::"
ZYGOTE = "tests/unit/test_zygote.py::"
LIMITS = "tests/unit/test_limits.py::"
QUEUE = "tests/integration/test_queue.py::"
CAPS = "tests/integration/test_caps.py::"
OUTGOING = "tests/unit/test_outgoing.py::"
OCCASIONS = "tests/integration/webhooks/test_occasions.py::"
DELIVERIES = "tests/integration/webhooks/test_deliveries.py::"
DISKS = "tests/integration/test_disks.py::"
RETENTION = "tests/integration/test_retention.py::"
IMPORTS = "tests/integration/test_imports.py::"
CHAINS = "tests/integration/test_chains.py::"


@dataclass(frozen=True)
class Guard:
    """What is removed: `old` stands exactly once in `file`, `new` takes its place; `tests` must turn red."""

    name: str
    protects: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


GUARDS = [
    Guard(
        "lease predicate of a renewal",
        "a worker that lost its job does not hold on to it",
        "shared/leases.py",
        """         WHERE a.lease_id = :lease AND a.ended_at IS NULL
           AND j.id = a.job_id AND j.attempt_id = a.id AND w""",
        "         WHERE a.lease_id = :lease AND j.id = a.job_id AND w",
        (JOBS + "test_a_lost_workers_word_is_ignored",),
    ),
    Guard(
        "lease predicate of report and finish",
        "what a lost worker says of a job does not count",
        "shared/leases.py",
        """        .join(Attempt, col(Attempt.id) == Job.attempt_id)
        .where(Attempt.lease_id == lease_id, col(Attempt.ended_at).is_(None))""",
        """        .join(Attempt, col(Attempt.job_id) == Job.id)
        .where(Attempt.lease_id == lease_id)""",
        (JOBS + "test_a_lost_workers_word_is_ignored",),
    ),
    Guard(
        "lease predicate of events and checkpoints",
        "what a lost worker writes beside a job does not count",
        "shared/leases.py",
        """        .join(Job, col(Job.attempt_id) == Attempt.id)
        .where(Attempt.lease_id == lease_id, col(Attempt.ended_at).is_(None))""",
        "        .where(Attempt.lease_id == lease_id)",
        (JOBS + "test_a_lost_workers_word_is_ignored", "tests/integration/test_events.py::test_a_lost_lease_appends_nothing"),
    ),
    Guard(
        "outage guard: the server's start",
        "after an outage of the database no running job is queued again",
        "shared/reaper.py",
        "if not mine or float(db.connection().execute(up).scalar_one()) < lease:",
        "if not mine:",
        (JOBS + "test_nothing_is_reaped_within_a_lease_of_the_databases_start",),
    ),
    Guard(
        "outage guard: most leases at once",
        "the same where the database was up and nobody could reach it",
        "shared/reaper.py",
        "patience = lease if mark_suspects(db, lease / 4) else 1.5 * settings().heartbeat_seconds",
        "mark_suspects(db, lease / 4)\n    patience = 1.5 * settings().heartbeat_seconds",
        (JOBS + "test_when_most_leases_run_out_at_once_the_reaper_waits_another_lease",),
    ),
    Guard(
        "suspicion before the reaping",
        "a worker that was late for a moment keeps its job",
        "shared/reaper.py",
        "a.suspect_since < clock_timestamp() - make_interval(secs => :patience)",
        "a.suspect_since < clock_timestamp() + make_interval(secs => :patience)",
        (JOBS + "test_a_lost_lease_queues_the_job_again",),
    ),
    Guard(
        "a cancel beats a finish that comes after it",
        "who cancels in time gets a cancelled job",
        "shared/jobs.py",
        "    if job.cancel_requested_at is not None:\n        unsaid =",
        "    if False:\n        unsaid =",
        (JOBS + "test_a_finish_after_a_cancel_request_ends_cancelled_and_keeps_the_checkpoint",),
    ),
    Guard(
        "idempotency key",
        "an order that is sent twice is one job",
        "shared/jobs.py",
        "            accepted.job.idempotency_key = idempotency_key\n",
        "",
        (JOBS + "test_the_same_key_gives_the_same_job_and_another_order_is_refused", JOBS + "test_fifty_clicks_at_once_are_one_job"),
    ),
    Guard(
        "a key is known by its order",
        "a key that is used again for another order is refused",
        "shared/jobs.py",
        "if known is not None and known.body_hash != body_hash:",
        "if False:",
        (JOBS + "test_the_same_key_gives_the_same_job_and_another_order_is_refused",),
    ),
    Guard(
        "what is there already",
        "nobody unmakes the base model or the rows that others use",
        "shared/imports.py",
        "    if row.state == Ready.READY:",
        "    if False:",
        (IMPORTS + "test_a_shared_base_model_that_is_there_is_not_unmade_by_a_retry", IMPORTS + "test_rows_that_are_there_are_not_unmade_by_a_retry"),
    ),
    Guard(
        "an import that others wait for",
        "no team ends the jobs of another",
        "shared/jobs.py",
        "    imports.require_not_needed(db, job)\n",
        "",
        (IMPORTS + "test_an_import_that_another_team_waits_for_goes_on",),
    ),
    Guard(
        "row lock of a claim",
        "one job goes to one worker, also while somebody cancels it",
        "shared/ranking.py",
        "                .with_for_update(skip_locked=True)\n",
        "",
        (JOBS + "test_a_job_that_somebody_cancels_just_now_is_passed_over_without_waiting",),
    ),
    Guard(
        "lock of a claim",
        "no cap is exceeded however many claim at once",
        "shared/jobs.py",
        "    caps.lock(db, slot)\n",
        "",
        (CAPS + "test_no_cap_is_exceeded_while_many_claim_and_finish",),
    ),
    Guard(
        "cap of a team",
        "a team occupies no more slots than it may",
        "shared/ranking.py",
        "least(:free, c.slots - coalesce(h.slots, 0),",
        "least(:free,",
        (CAPS + "test_a_team_never_occupies_more_slots_than_its_cap",),
    ),
    Guard(
        "cap of all teams",
        "all teams together occupy no more slots than they may",
        "shared/ranking.py",
        "- coalesce((SELECT sum(slots) FROM held), 0))",
        "+ 1000)",
        (CAPS + "test_the_cap_of_all_teams_holds_for_all_together",),
    ),
    Guard(
        "slots of a worker",
        "a worker holds no more attempts than it has slots",
        "shared/workers.py",
        "    free = has.slots - taken(db, slot, [worker_id])[worker_id]\n",
        "    free = has.slots\n",
        (CAPS + "test_a_worker_holds_no_more_attempts_than_it_has_slots",),
    ),
    Guard(
        "end of a wait",
        "a job whose last dependency has succeeded may be claimed",
        "shared/settling.py",
        'waiting.stage, waiting.ready = "", True',
        'waiting.stage = ""',
        (JOBS + "test_a_job_waits_for_the_imports_of_its_data_and_its_base_model",),
    ),
    Guard(
        "end of a rest",
        "a job whose rest is over may be claimed",
        "shared/jobs.py",
        "    ranking.let_in(db, slot)\n",
        "",
        (BUDGETS + "test_a_new_checkpoint_gives_the_budget_back",),
    ),
    Guard(
        "needs of a job",
        "a job that needs GPUs goes to a worker that has them",
        "shared/ranking.py",
        "AND {TAKES} <= room.slots AND {FITS} AND {HAS_ROOM}",
        "AND {TAKES} <= room.slots AND {HAS_ROOM}",
        (CAPS + "test_a_job_that_needs_gpus_goes_to_a_worker_that_has_them",),
    ),
    Guard(
        "room on a disk",
        "a job goes to a worker that has room for it",
        "shared/ranking.py",
        "AND {FITS} AND {HAS_ROOM}",
        "AND {FITS}",
        (DISKS + "test_a_job_goes_to_a_worker_with_room_for_it",),
    ),
    Guard(
        "floor of a disk",
        "a worker whose disk is short claims nothing",
        "worker/machine.py",
        "and not self.note and not self.disk.short",
        "and not self.note",
        (DISKS + "test_a_worker_below_its_floor_claims_nothing_says_so_and_goes_on_by_itself",),
    ),
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
        "a slot's lock is the trainer's too",
        "a slot is nobody else's while a trainer of a killed worker lives",
        "worker/zygote.py",
        "settled, *locks})",
        "settled})",
        (ZYGOTE + "test_a_slot_is_nobodys_while_a_trainer_of_a_killed_worker_lives",),
    ),
    Guard(
        "longest run",
        "a job that runs for longer than it may is ended",
        "shared/leases.py",
        "coalesce(j.max_run_seconds < (",
        "coalesce(NULL < (",
        (CAPS + "test_a_running_job_is_overdue_once_all_its_attempts_took_longer_than_it_may",),
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
        "PDEATHSIG",
        "a trainer dies with the process that forked it",
        "worker/walls.py",
        "    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)\n    if os.getppid()",
        "    if os.getppid()",
        (ZYGOTE + "test_the_death_of_the_zygote_is_the_death_of_its_trainers",),
    ),
    Guard(
        "watchdog on the worker's pipe",
        "a trainer dies with its worker also where the death signal fails",
        "worker/walls.py",
        "    watch(pipe, end_group)\n",
        "",
        (ZYGOTE + "test_the_watchdog_alone_ends_a_trainer",),
    ),
    Guard(
        "adoption of orphans",
        "what a trainer leaves behind ends with it, also in a session of its own",
        "worker/walls.py",
        "    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)\n",
        "    return\n",
        (ZYGOTE + "test_a_daemon_that_a_trainer_leaves_behind_ends_with_it",),
    ),
    Guard(
        "network wall",
        "a trainer reaches no server, not even on this machine",
        "worker/walls.py",
        "    own_network()\n    libc",
        "    libc",
        (ZYGOTE + "test_a_trainer_has_no_network_no_credentials_and_no_way_to_more_rights",),
    ),
    Guard(
        "no TCP by Landlock",
        "a trainer of one process reaches no server where it may have no network namespace",
        "worker/landlock.py",
        "BIND | CONNECT if alone else 0",
        "0",
        ("tests/unit/test_network.py::test_a_trainer_alone_reaches_no_server_and_several_reach_one_another",),
    ),
    Guard(
        "no rights of root's",
        "a root worker's trainer is no root",
        "worker/walls.py",
        "    landlock.restrict(folder, given)\n    drop_capabilities()\n",
        "    landlock.restrict(folder, given)\n",
        ("tests/unit/test_rights.py::test_a_trainer_has_no_right_of_roots_and_writes_in_its_folder_all_the_same",),
    ),
    Guard(
        "few devices",
        "teams share no memory by /dev/shm",
        "worker/landlock.py",
        "        allow(ruleset, devices(given), every & ~EXECUTE)\n",
        '        allow(ruleset, [Path("/dev")], every & ~EXECUTE)\n',
        ("tests/unit/test_rights.py::test_a_trainer_opens_few_devices_and_shares_memory_only_with_other_processes_of_its_own",),
    ),
    Guard(
        "no more processes",
        "a fork bomb, a daemon and a shell are refused to a trainer, also to root's",
        "worker/walls.py",
        "    seccomp.restrict(alone=processes(given) == 1)\n",
        "",
        (LIMITS + "test_a_trainer_is_bounded_and_its_worker_lives",),
    ),
    Guard(
        "limits of a trainer",
        "a trainer takes no more threads, memory and disk than there is",
        "worker/walls.py",
        "    limits.limit(folder, on_a_gpu=on_a_gpu(given), processes=processes(given))\n",
        "",
        (LIMITS + "test_a_trainer_is_bounded_and_its_worker_lives",),
    ),
    Guard(
        "allow-list of the environment",
        "a trainer knows no credential",
        "worker/walls.py",
        "name: value for name, value in surroundings.items() if name in KEPT or name.startswith(KEPT_PREFIXES)",
        "name: value for name, value in surroundings.items()",
        (ZYGOTE + "test_credentials_stay_with_the_supervisor",),
    ),
    Guard(
        "disabled prefetch",
        "a busy worker leaves wake-ups to the others",
        "shared/queue.py",
        "worker_disable_prefetch=True",
        "worker_disable_prefetch=False",
        (QUEUE + "test_the_settings_are_those_that_the_traps_demand",),
    ),
    Guard(
        "early acknowledgement",
        "no wake-up is delivered again when it has become old",
        "shared/queue.py",
        "task_acks_late=False",
        "task_acks_late=True",
        (QUEUE + "test_the_settings_are_those_that_the_traps_demand",),
    ),
    Guard(
        "time-outs of the publisher",
        "a frozen broker holds no request",
        "shared/queue.py",
        '            "socket_timeout": 1,\n            "socket_connect_timeout": 1,\n            "max_retries": 0,\n',
        '            "max_retries": 0,\n',
        (QUEUE + "test_the_settings_are_those_that_the_traps_demand",),
    ),
    Guard(
        "deadline of a wake-up",
        "a slow broker holds no request",
        "shared/queue.py",
        ".result(timeout=SEND_SECONDS)",
        ".result()",
        (QUEUE + "test_a_slow_broker_holds_nobody_longer_than_a_second",),
    ),
    Guard(
        "a draining worker claims nothing",
        "a worker that is to go gets no new job",
        "shared/workers.py",
        "if worker is None or worker.draining_at is not None:",
        "if worker is None:",
        (JOBS + "test_a_draining_worker_gets_nothing",),
    ),
    Guard(
        "budget of crashes",
        "a job that crashes again and again ends with its story",
        "shared/budgets.py",
        "    if len(crashed) >= most:",
        "    if len(crashed) > 10**6:",
        (BUDGETS + "test_three_crashes_without_getting_on_end_the_job",),
    ),
    Guard(
        "seed of each step",
        "a resumed run ends with the weights of one that was never disturbed",
        "worker/engine/loop.py",
        "torch.manual_seed(seed_of(run.attempt.seed, step, places[0]))",
        "pass",
        ("tests/unit/test_resumed.py::test_a_resumed_training_ends_like_an_uninterrupted_one[classification]",),
    ),
    Guard(
        "addresses of a webhook's host",
        "what a user enters reaches nothing behind our walls",
        "shared/outgoing.py",
        "    if not where.open and not all(is_public(address) for address in found):",
        "    if False:",
        (OUTGOING + "test_no_spelling_of_a_local_address_is_reached", OUTGOING + "test_a_name_with_one_private_address_among_public_ones_is_refused"),
    ),
    Guard(
        "connection to the address that was checked",
        "a name that leads elsewhere after the check gains nothing",
        "shared/outgoing.py",
        "sock.connect((str(address), where.port))",
        "sock.connect(socket.getaddrinfo(where.host, where.port)[0][4])",
        (OUTGOING + "test_a_name_that_changes_its_mind_after_the_check_gains_nothing",),
    ),
    Guard(
        "name in the certificate of a webhook's host",
        "nobody else receives what is meant for it",
        "shared/outgoing.py",
        "wrap_socket(sock, server_hostname=where.host)",
        "wrap_socket(sock, server_hostname='hooks.test')",
        (OUTGOING + "test_another_names_certificate_is_not_accepted",),
    ),
    Guard(
        "deadline of a try",
        "a receiver that drips holds no sender",
        "shared/outgoing.py",
        "        sock.settimeout(left(ends))\n        part",
        "        sock.settimeout(10)\n        part",
        (OUTGOING + "test_a_receiver_that_drips_is_left_when_the_time_is_up",),
    ),
    Guard(
        "end of reading an answer",
        "a receiver that answers without end holds no sender",
        "shared/outgoing.py",
        "and len(received) < MOST_HEAD:",
        "and len(received) < MOST_HEAD**9:",
        (OUTGOING + "test_of_an_endless_answer_only_the_beginning_is_read",),
    ),
    Guard(
        "deliveries are written with what they tell of",
        "neither is there without the other",
        "shared/outbox.py",
        "        db.add(message(db, webhook, type_of(job.kind, occasion), facts(job), job.id))",
        """        from shared.db import transaction

        with transaction() as other:
            other.add(message(other, webhook, type_of(job.kind, occasion), facts(job)))""",
        (OCCASIONS + "test_what_did_not_happen_is_not_told",),
    ),
    Guard(
        "no waiting for a webhook that is being deleted",
        "a transition never waits",
        "shared/outbox.py",
        "subscribed.with_for_update(read=True, key_share=True, skip_locked=True)",
        "subscribed.with_for_update(read=True, key_share=True)",
        (OCCASIONS + "test_a_transition_does_not_wait_for_somebody_who_deletes_the_webhook",),
    ),
    Guard(
        "lease of a delivery",
        "one sender at a time; a dead one's is sent again",
        "shared/outbox.py",
        "        or_(col(Delivery.sending_until).is_(None), col(Delivery.sending_until) <= at),\n",
        "",
        (DELIVERIES + "test_a_delivery_is_one_senders_at_a_time_and_nobody_waits_for_it",),
    ),
    Guard(
        "lease predicate of a delivery's result",
        "a late sender's word does not count",
        "shared/outbox.py",
        "Delivery.id == sent.id, Delivery.sending_until == sent.lease",
        "Delivery.id == sent.id",
        (DELIVERIES + "test_a_senders_word_after_its_lease_is_ignored",),
    ),
    Guard(
        "turns of receivers",
        "one slow receiver holds up no other",
        "shared/outbox.py",
        "ranked.c.turn <= FAIRLY",
        "ranked.c.turn <= 10**6",
        (DELIVERIES + "test_of_one_receiver_a_few_are_taken_so_that_others_have_their_turn",),
    ),
    Guard(
        "membership of who gets a mail",
        "nobody hears of a team that they have left",
        "shared/notices.py",
        "here = (Membership.team_id == team_id, User.id == user_id, col(User.disabled_at).is_(None))",
        "here = (User.id == user_id,)",
        ("tests/integration/test_notices.py::test_who_has_left_or_may_not_sign_in_gets_nothing_that_was_on_its_way",),
    ),
]  # fmt: skip
