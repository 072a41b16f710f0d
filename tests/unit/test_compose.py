"""docker-compose.yml speaks of settings that exist, asks for every secret, and is valid."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shared.settings import Settings

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
OURS = ("migrate", "web", "worker", "beat")
TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES = yaml.safe_load(TEXT)["services"]
SETTINGS = {name.upper(): field for name, field in Settings.model_fields.items()}


@pytest.mark.parametrize("name", FILES)
def test_it_is_valid_by_the_compose_specification(name):
    check = [
        Path(sys.executable).parent / "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        ROOT / name,
    ]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("service", OURS)
def test_every_setting_that_it_names_exists(service):
    assert set(SERVICES[service]["environment"]) <= set(SETTINGS)


@pytest.mark.parametrize("service", OURS)
def test_every_setting_without_a_default_is_given(service):
    needed = {name for name, field in SETTINGS.items() if field.is_required()}
    assert needed <= set(SERVICES[service]["environment"])


def test_no_secret_has_a_default():
    secrets = re.findall(r"\$\{([A-Z0-9_]*(?:PASSWORD|SECRET|ACCESS_KEY)[A-Z0-9_]*)(:?[-?])?", TEXT)
    assert secrets
    assert all(mark == ":?" for _, mark in secrets)


def test_the_example_names_every_variable_that_it_asks_for():
    asked = set(re.findall(r"\$\{([A-Z0-9_]+)", TEXT))
    named = set(re.findall(r"^([A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert asked == named


def test_the_example_gives_no_secret_a_value():
    given = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert not any(value for name, value in given.items() if re.search("PASSWORD|SECRET|ACCESS_KEY", name))


@pytest.mark.parametrize("service", OURS)
def test_signals_reach_the_program_itself(service):
    """Exec form and no init between: `burnish` replaces itself by gunicorn or Celery."""
    assert isinstance(SERVICES[service]["command"], list)
    assert SERVICES[service]["init"] is False
    assert 'ENTRYPOINT ["burnish"]' in (ROOT / "Dockerfile").read_text()


def test_a_worker_has_time_to_write_its_checkpoints():
    from shared.queue import DRAIN_SECONDS

    assert int(SERVICES["worker"]["stop_grace_period"].rstrip("s")) >= DRAIN_SECONDS + 30


def test_only_the_web_is_published():
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["web"]


def test_every_server_and_the_web_have_a_health_check():
    assert {name for name, service in SERVICES.items() if "healthcheck" in service} == {
        "web", "postgres", "valkey", "seaweedfs",
    }  # fmt: skip
