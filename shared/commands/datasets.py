"""dataset push."""

import argparse
from pathlib import Path

from shared.client import Api, connect
from shared.errors import Refused


def push(arguments: argparse.Namespace) -> None:
    """Upload a file, wait until its rows are read, say what was found; its id is the last line."""
    api = connect()
    file = stored(api, arguments.file, arguments.purpose)
    file = api.wait_for_file(file["id"])
    if file.get("x_rows") is not None:
        print(f"{file['filename']}: {file['x_rows']:,} rows")
    for finding in file.get("x_findings", []):
        where = f"row {finding['row']}: " if finding.get("row") else ""
        print(f"  {where}{finding['message']}")
    print(file["id"])


def stored(api: Api, name: str, purpose: str = "fine-tune") -> dict:
    """The uploaded file of that name on this machine. Raises Refused."""
    path = Path(name)
    if not path.is_file():
        raise Refused(f"There is no file {path}.")
    return api.upload(path, purpose)


def id_of(api: Api, given: str) -> str:
    """`given` itself where it is an id, else the id of that file once it is uploaded and read."""
    if Path(given).is_file():
        return api.wait_for_file(stored(api, given)["id"])["id"]
    if not given.startswith(("file-", "ds-", "dsv-")):
        raise Refused(f"There is no file {given}, and it is no id of a file or dataset.")
    return given
