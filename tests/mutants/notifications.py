"""The guards of webhooks and e-mails."""

from tests.mutants.guard import Guard

OUTGOING = "tests/unit/test_outgoing.py::"
OCCASIONS = "tests/integration/webhooks/test_occasions.py::"
DELIVERIES = "tests/integration/webhooks/test_deliveries.py::"

GUARDS = [
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
