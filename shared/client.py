"""The HTTP API as the command line uses it: the same one that everybody calls, over httpx."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from shared.errors import Refused
from shared.stack import Home, home_folder, use

BLOCK = 1024**2
PATIENCE = 5  # attempts at a request or a download that breaks off
Told = Callable[[str, int, int], None]  # (file, bytes so far, bytes in all)


class Api:
    """One team's view of a Burnish. Every method raises Refused with the server's own sentence."""

    def __init__(self, url: str, token: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.meanwhile = meanwhile  # called before a broken request is sent again
        self.url = url.rstrip("/").removesuffix("/v1")
        self.wire = httpx.Client(
            base_url=f"{self.url}/v1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(60, connect=10),
            trust_env=not self.url.startswith("http://127.0.0.1"),  # no proxy stands before ourselves
        )

    def ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """The answer's document."""
        return document(self.wire.request(method, path, **request))

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Read one object or one page of a list; asked again where the connection breaks."""
        for chance in range(PATIENCE):
            try:
                return self.ask("GET", path, params=query)
            except httpx.TransportError:
                if chance == PATIENCE - 1:
                    raise
                self.meanwhile()
                time.sleep(0.5 * 2**chance)
        raise AssertionError

    def post(self, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> dict[str, Any]:
        """Send a JSON body; with a key a repeated request is the same job."""
        headers = {"Idempotency-Key": key} if key else {}
        return self.ask("POST", path, json=body or {}, headers=headers)

    def every(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The objects of a list, page after page."""
        while True:
            page = self.get(path, **query)
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            query["after"] = page["data"][-1]["id"]

    def upload(self, path: Path, purpose: str = "fine-tune") -> dict[str, Any]:
        """Store a file; its rows are checked in the background."""
        with path.open("rb") as stream:
            sent = {"file": (path.name, stream)}
            return self.ask("POST", "/files", data={"purpose": purpose}, files=sent, timeout=3600)

    def wait_for_file(self, file_id: str, seconds: float = 3600) -> dict[str, Any]:
        """The file once its rows have been read. Raises Refused where they cannot be."""
        deadline = time.monotonic() + seconds
        while (file := self.get(f"/files/{file_id}"))["status"] == "uploaded":
            if time.monotonic() > deadline:
                raise Refused(
                    f"{file['filename']} is still being read after {seconds:.0f} s. Is a worker up?"
                )
            time.sleep(0.3)
        if file["status"] == "error":
            raise Refused(f"{file['filename']}: {file['status_details']}")
        return file

    def entry(self, file_id: str) -> dict[str, Any]:
        """A stored file as `fetch` downloads it."""
        file = self.get(f"/files/{file_id}")
        return {
            "name": file["filename"],
            "bytes": file["bytes"],
            "sha256": file["x_sha256"],
            "url": f"{self.url}/v1/files/{file_id}/content",
            "headers": {"Authorization": self.wire.headers["Authorization"]},
        }


def document(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of a good answer. Raises Refused for any other."""
    if answer.is_success:
        return answer.json()
    try:
        fault = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        sentence = f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}."
        raise Refused(sentence, status=answer.status_code) from None
    param = f" ({fault['param']})" if fault.get("param") and fault["param"] not in fault["message"] else ""
    raise Refused(fault["message"] + param, code=fault.get("code") or "", status=answer.status_code)


def connect() -> Api:
    """The Burnish of BURNISH_URL and BURNISH_TOKEN, else the one that runs from the data folder."""
    url, token = os.environ.get("BURNISH_URL"), os.environ.get("BURNISH_TOKEN")
    if url and not token:
        raise Refused("BURNISH_URL is set and BURNISH_TOKEN is not. Make a token on the Team page.")
    home = Home(home_folder())
    if not url:
        url = home.environment().get("PUBLIC_URL") or os.environ.get("PUBLIC_URL")
    if not url:
        raise Refused(
            f"No stack in {home.folder}. Start one with «make up», or set BURNISH_URL and BURNISH_TOKEN."
        )
    return Api(url, token or kept_token(home, "cli-token"))


def kept_token(home: Home, name: str, team: str | None = None) -> str:
    """The token in that file of the data folder; made for the team, or the oldest one, where it is
    missing or no longer good.
    """
    from sqlmodel import col, select

    from shared import teams
    from shared.db import transaction
    from shared.tables import Team

    use(home)
    file = home.folder / name
    with transaction() as db:
        secret = file.read_text().strip() if file.exists() else ""
        if secret and teams.token(db, secret):
            return secret
        wanted = select(Team).order_by(col(Team.id))
        row = db.exec(wanted if team is None else wanted.where(Team.name == team)).first()
        if row is None and team is None:
            raise Refused("There is no team yet. Make one with: burnish user add you@example.com --team Team")
        secret = teams.create_token(
            db, row or teams.create_team(db, team or ""), f"burnish command ({name})"
        )[1]
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(secret + "\n")
    return secret


# --- downloads --------------------------------------------------------------------------------


def fetch(files: Callable[[], list[dict[str, Any]]], folder: Path, told: Told) -> list[Path]:
    """Download files into a folder: what is there is kept, what was cut off goes on, every one is
    compared with its SHA-256 and appears under its name only when it is whole.

    `files` gives the list anew, since its links end after a while. Raises Refused.
    """
    listed = files()
    got = []
    for place, entry in enumerate(listed):
        path = folder / safe(entry["name"])
        for chance in range(PATIENCE):
            try:
                fetch_one(entry, path, told)
                break
            except (httpx.TransportError, Refused) as broken:
                if chance == PATIENCE - 1:
                    raise Refused(f"{entry['name']} could not be downloaded: {broken}") from broken
                time.sleep(0.5 * 2**chance)
                listed = files()
                entry = listed[place]  # noqa: PLW2901 - the same file with a fresh link
        got.append(path)
    return got


def safe(name: str) -> PurePosixPath:
    """A file name that stays inside the folder. Raises Refused."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise Refused(f"The server names a file «{name}», which lies outside of the folder.")
    return path


def fetch_one(entry: dict[str, Any], path: Path, told: Told) -> None:
    """One file. Raises Refused where the bytes are not those that were stored."""
    name, size = entry["name"], entry["bytes"]
    if path.exists() and path.stat().st_size == size and digest(path) == entry["sha256"]:
        told(name, size, size)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        part.unlink(missing_ok=True)
        have = 0
    with httpx.stream(
        "GET",
        entry["url"],
        headers=entry.get("headers", {}) | ({"Range": f"bytes={have}-"} if have else {}),
        timeout=60,
        follow_redirects=True,
        trust_env=not entry["url"].startswith("http://127.0.0.1"),
    ) as answer:
        if not answer.is_success:
            raise Refused(f"the link answered {answer.status_code} {answer.reason_phrase}")
        resumed = have and answer.status_code == httpx.codes.PARTIAL_CONTENT
        with part.open("ab" if resumed else "wb") as file:
            for block in answer.iter_bytes(BLOCK):
                file.write(block)
                told(name, file.tell(), size)
            file.flush()
            os.fsync(file.fileno())
    if digest(part) != entry["sha256"]:
        part.unlink()
        raise Refused("the bytes that came are not those that were stored")
    part.replace(path)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
