"""Styles and scripts: the files of `web/static` and three named files of the npm packages, nothing else."""

from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from flask import Blueprint, Response, abort, request, send_file, url_for

pages = Blueprint("assets", __name__)

HERE = Path(__file__).parent
FROM_NPM = {
    "htmx.js": "htmx.org/dist/htmx.min.js",
    "uplot.js": "uplot/dist/uPlot.iife.min.js",
    "uplot.css": "uplot/dist/uPlot.min.css",
}
YEAR = 31_536_000


def path_of(name: str) -> Path | None:
    """Where an asset lies; None for a name that is not on the list."""
    if name in FROM_NPM:
        path = HERE / "node_modules" / FROM_NPM[name]
        return path if path.is_file() else None
    return {path.name: path for path in (HERE / "static").iterdir() if path.is_file()}.get(name)


@lru_cache(maxsize=64)
def _fingerprint(path: Path, _changed: int) -> str:
    return sha256(path.read_bytes()).hexdigest()[:12]


@pages.app_template_global()
def asset(name: str) -> str:
    """The address of an asset, with its fingerprint, so that it may be kept for ever."""
    path = path_of(name)
    version = _fingerprint(path, path.stat().st_mtime_ns) if path else "missing"
    return url_for("assets.file", name=name, v=version)


@pages.get("/assets/<name>")
def file(name: str) -> Response:
    """One asset. With its fingerprint it never changes; without, the browser asks each time."""
    path = path_of(name)
    if path is None:
        abort(404)
    answer = send_file(path, conditional=True)
    kept = "v" in request.args and request.args["v"] == _fingerprint(path, path.stat().st_mtime_ns)
    answer.headers["Cache-Control"] = f"public, max-age={YEAR}, immutable" if kept else "no-cache"
    return answer
