"""A receiver, and a team with a webhook that leads there."""

from types import SimpleNamespace

import pytest

from shared import webhooks
from shared.db import transaction
from shared.settings import settings
from shared.tables import Kind, Role
from tests.factories import a_team, a_user, a_worker
from tests.receiver import Receiver


@pytest.fixture
def receiver(monkeypatch, stack):
    """Listens at an address that the operator has named."""
    with Receiver() as listening:
        monkeypatch.setattr(settings(), "webhook_hosts", listening.at)
        yield listening


@pytest.fixture
def house(clean, receiver):
    """A team with a webhook that hears of everything, and a worker."""
    with transaction() as db:
        team = a_team(db)
        webhook, secret = webhooks.create(db, team_id=team.id, url=receiver.url, kinds=list(Kind))
        return SimpleNamespace(team=team, webhook=webhook, secret=secret, worker=a_worker(db), owner=a_user(db, team, Role.OWNER))  # fmt: skip
