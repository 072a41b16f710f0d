"""A wall that does not stand around a worker's trainers is named, with what to do."""

from shared.commands import doctor
from shared.db import transaction
from tests.factories import a_team, a_user, a_worker
from tests.visitor import Visitor, the_web

ALL = {"network_namespace": True, "landlock": True, "seccomp": True}


def test_a_missing_wall_is_named_on_the_queues_page_and_by_the_doctor(clean):
    with transaction() as db:
        user = a_user(db, a_team(db))
        a_worker(db, host="walled", sandbox=ALL)
    visitor = Visitor(the_web(), user)
    assert "sub missing" not in visitor.get("/queue").text
    assert not [fact.mend for fact in doctor.workers() if fact.mend]
    with transaction() as db:
        a_worker(db, host="in-a-container", sandbox=ALL | {"network_namespace": False})
        a_worker(db, host="old", sandbox=dict.fromkeys(ALL, False))
    page, mend = visitor.get("/queue").text, [fact.mend for fact in doctor.workers() if fact.mend]
    for said in (
        "No network wall around jobs of several processes: allow",
        "No network wall: allow",
        "No file wall: boot",
    ):
        assert f'<span class="sub missing">{said}' in page
        assert any(said in line for line in mend)
