"""A team with data and base models, the web in this process, and the files of a tiny model."""

from types import SimpleNamespace

import pytest

from shared.db import transaction
from tests.factories import a_base_model, a_dataset, a_team, a_token, tiny_causal_lm
from tests.visitor import LABELLED, Api, the_web


@pytest.fixture
def app(clean):
    return the_web()


@pytest.fixture
def alpha(app):
    """Team Alpha, its token's client, chat rows, labelled rows, a chat model and an encoder."""
    with transaction() as db:
        team = a_team(db, "Alpha Team")
        return SimpleNamespace(
            api=Api(app, a_token(db, team)),
            team=team,
            chat=a_dataset(db, team),
            labelled=a_dataset(db, team, LABELLED),
            model=a_base_model(db),
            encoder=a_base_model(db, head="encoder"),
        )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a causal language model that trains within seconds; nobody changes it."""
    return tiny_causal_lm(tmp_path_factory.mktemp("tiny"))
