"""The environment as one typed object, read once at the edge of each program.

Every name here is an environment variable of the same name in capitals. Where the environment
is silent, the file `env` in the data folder (written by the embedded stack) answers, so that
commands find the stack that runs from `BURNISH_HOME`.
"""

import os
from functools import lru_cache
from pathlib import Path

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

GIB = 1024**3


class Settings(BaseSettings):
    """Where the parts are, and the limits that an operator may set. Times are in seconds."""

    model_config = SettingsConfigDict(extra="ignore", env_file_encoding="utf-8")

    burnish_home: Path = Field(Path(".burnish"), description="Data folder of this machine.")
    database_url: str = Field(description="postgresql+psycopg://user:password@host:port/name")
    redis_url: str = Field(description="redis://:password@host:port/0, for wake-ups alone.")
    s3_endpoint: str = Field(description="Address of the S3-compatible store.")
    s3_public_url: str = Field(
        "", description="The store as browsers reach it; empty: stream through the web."
    )
    s3_bucket: str = Field("burnish", description="The one bucket; each team has its prefix.")
    aws_access_key_id: str = Field(description="Key of the store.")
    aws_secret_access_key: str = Field(description="Secret of the store.")
    secret_key: str = Field(
        min_length=32, description="Signs cookies and download links; webhooks' secrets are made from it."
    )
    public_url: str = Field("http://127.0.0.1:8000", description="The web as people reach it.")
    smtp_url: str = Field("", description="smtp://user:password@host:port; empty: no e-mail is sent.")
    mail_from: str = Field("burnish@localhost", description="Sender of e-mail.")
    webhook_hosts: str = Field(
        "",
        description="Hosts that webhooks may reach although they are private or speak plain http: names or addresses,"
        " alone (ports 80 and 443) or as host:port, with commas between.",
    )
    trusted_proxies: int = Field(0, ge=0, description="Reverse proxies whose forwarded headers count.")

    max_upload_bytes: int = Field(2 * GIB, gt=0, description="Largest upload.")
    compute_slots: int = Field(
        1, ge=0, description="Training, evaluation and inference jobs at once on this worker."
    )
    trainer_threads: int = Field(
        0, ge=0, description="CPU threads of a trainer; 0: the cores shared out among the compute slots."
    )
    light_slots: int = Field(1, ge=0, description="Imports and exports at once on this worker.")
    disk_floor_gib: float = Field(
        5,
        ge=0,
        description="GiB of the data folder's disk that a worker leaves free: with less it takes no jobs.",
    )
    heartbeat_seconds: float = Field(10, gt=0, description="Between two signs of life of a worker.")
    lease_seconds: float = Field(60, gt=0, description="An attempt that is silent for longer is lost.")
    sweep_seconds: float = Field(15, gt=0, description="What a lost wake-up costs at most.")
    retry_seconds: float = Field(
        30, ge=0, description="Pause after a first crash; doubled after each further one."
    )
    hang_seconds: float = Field(
        600,
        gt=0,
        description="A training that makes no step for longer, and for 20 times its usual step, is ended; other"
        " jobs have three times as long.",
    )
    session_hours: float = Field(24 * 7, gt=0, description="Longest time signed in.")
    download_minutes: float = Field(15, gt=0, description="How long a download link is good.")
    allow_hub: bool = Field(False, description="Base models may be fetched from a hub by id.")

    @field_validator("public_url")
    @classmethod
    def without_last_slash(cls, given: str) -> str:
        """Paths are put behind it, each with its own slash."""
        return given.rstrip("/")

    @model_validator(mode="after")
    def lease_outlives_heartbeats(self) -> "Settings":
        """A lease must survive two lost heartbeats."""
        if self.lease_seconds < 3 * self.heartbeat_seconds:
            raise ValueError("LEASE_SECONDS must be at least three times HEARTBEAT_SECONDS.")
        return self


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process. Raises pydantic.ValidationError naming what is missing."""
    home = Path(os.environ.get("BURNISH_HOME", ".burnish"))
    return Settings(_env_file=home / "env")
