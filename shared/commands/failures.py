"""Errors of the command line as sentences."""

import errno
import sys


def spoken(failure: Exception) -> str | None:
    """What went wrong and what to do; None where it is a defect of ours and wants its traceback."""
    from shared.errors import Refused
    from shared.supervisor import Failed

    if isinstance(failure, Refused):
        return failure.message
    if isinstance(failure, Failed):
        return str(failure)
    if isinstance(failure, OSError) and failure.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
    ):
        return (
            f"{failure.strerror}: {failure.filename or 'on writing'}. BURNISH_HOME names another data folder."
        )
    return of_settings(failure) or of_services(failure)


def of_settings(failure: Exception) -> str | None:
    """Settings that are missing or wrong."""
    if "pydantic" not in sys.modules:
        return None
    from pydantic import ValidationError

    if not isinstance(failure, ValidationError) or failure.title != "Settings":
        return None
    from shared.stack import home_folder

    wrong = [
        f"{'.'.join(str(p) for p in e['loc']).upper() or 'Settings'}: {e['msg']}" for e in failure.errors()
    ]
    if any(e["type"] == "missing" for e in failure.errors()) and not (home_folder() / "env").exists():
        return (
            f"No stack in {home_folder()}. Start one with «make up», or name yours in the environment:\n  "
            + ("\n  ".join(wrong))
        )
    return "The settings do not hold:\n  " + "\n  ".join(wrong)


def of_services(failure: Exception) -> str | None:
    """A database, broker, store or web that does not answer."""
    name = type(failure).__module__.split(".")[0]
    if name in ("sqlalchemy", "psycopg") and "OperationalError" in type(failure).__name__:
        reason = str(getattr(failure, "orig", failure)).strip().splitlines()[0]
        return f"The database does not answer ({reason}). Is the stack up? «burnish doctor» tells more."
    if name == "httpx":
        return f"No answer from the web ({failure}). Is the stack up? «burnish doctor» tells more."
    return None
