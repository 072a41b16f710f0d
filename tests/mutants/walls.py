"""The guards of the trainer's walls and of its death with its worker."""

from tests.mutants.guard import Guard

ZYGOTE = "tests/unit/test_zygote.py::"
LIMITS = "tests/unit/test_limits.py::"

GUARDS = [
    Guard(
        "a slot's lock is the trainer's too",
        "a slot is nobody else's while a trainer of a killed worker lives",
        "worker/zygote.py",
        "settled, *locks})",
        "settled})",
        (ZYGOTE + "test_a_slot_is_nobodys_while_a_trainer_of_a_killed_worker_lives",),
    ),
    Guard(
        "pids come again",
        "a trainer whose pid an earlier one had is not taken for ended",
        "worker/zygote.py",
        "self.trainers.pop(said[\"exited\"]).ended = said[\"code\"]\n        elif \"forked\" in said:\n"
        "            self.trainers[said[\"forked\"]] = trainer = Trainer(self, said[\"forked\"])",
        "self.trainers[said[\"exited\"]].ended = said[\"code\"]\n        elif \"forked\" in said:\n"
        "            trainer = self.trainers.setdefault(said[\"forked\"], Trainer(self, said[\"forked\"]))",
        (ZYGOTE + "test_a_trainer_with_the_pid_of_an_earlier_one_has_an_end_of_its_own",),
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
]  # fmt: skip
