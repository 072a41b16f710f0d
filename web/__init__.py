"""The web: pages for people, `/v1` for programs. `create_app` puts it together."""

import logging
import pkgutil
import secrets
import time
from datetime import timedelta
from importlib import import_module
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, current_app, g, request
from flask_wtf.csrf import CSRFProtect
from werkzeug.middleware.proxy_fix import ProxyFix

from shared import migrate, storage
from shared.errors import Refused
from shared.settings import Settings, settings
from web import accounts, faults, policy
from web.pulse import Pulse, guard

log = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MIB = 1024**2


def create_app(*, testing: bool = False) -> Flask:
    """The whole web. Raises RuntimeError where the database is of another revision."""
    migrate.require_current()
    limits = settings()
    app = Flask(__name__, static_folder=None)  # web.assets serves the files
    app.testing = testing
    configure(app, limits)
    app.before_request(begin)
    pulse = Pulse()
    guard(app, pulse)
    policy.guard(app)
    accounts.limiter.init_app(app)
    csrf = CSRFProtect(app)
    for blueprint in blueprints():
        app.register_blueprint(blueprint)
        if (blueprint.url_prefix or "").startswith("/v1"):
            csrf.exempt(blueprint)  # bearer tokens alone: a browser never sends one by itself
    faults.install(app)
    app.after_request(finish)
    if not testing:
        pulse.start()
        with storage.hurried():
            storage.client()  # it takes a while to make
    return app


def configure(app: Flask, limits: Settings) -> None:
    """Limits, cookies and proxies from the settings."""
    https = limits.public_url.startswith("https://")
    host = urlsplit(limits.public_url).hostname or "localhost"
    app.config.update(
        SECRET_KEY=limits.secret_key,
        MAX_CONTENT_LENGTH=limits.max_upload_bytes + MIB,  # the form around the file
        TRUSTED_HOSTS=[f"[{host}]" if ":" in host else host, *LOOPBACK],
        SESSION_COOKIE_NAME="__Host-burnish" if https else "burnish",
        SESSION_COOKIE_SECURE=https,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_REFRESH_EACH_REQUEST=False,
        PERMANENT_SESSION_LIFETIME=timedelta(hours=limits.session_hours),
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session: forms stay open for days
        CONTENT_SECURITY_POLICY=content_security_policy(limits.s3_public_url),
        HTTPS=https,
    )
    app.json.sort_keys = False  # ty: ignore[missing-attribute] - Flask's own provider has it
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    if limits.trusted_proxies:
        hops = limits.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)
    if not https and host not in LOOPBACK:
        log.warning("PUBLIC_URL is not https: passwords and cookies cross the network in the clear.")


def blueprints() -> list[Blueprint]:
    """Every blueprint called `pages` or `api` in a file of this folder."""
    files = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [vars(file)[name] for file in files for name in ("pages", "api") if name in vars(file)]


def content_security_policy(store: str) -> str:
    """Nothing but the app's own files; pictures and sound also from the public store, where set."""
    parts = urlsplit(store)
    origin = f" {parts.scheme}://{parts.netloc}" if store else ""
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:{origin}; "
        f"media-src 'self'{origin}; font-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


def begin() -> None:
    """Number the request, so that an answer, a log line and a person's report can be joined."""
    g.request_id = f"req_{secrets.token_hex(12)}"
    g.started = time.monotonic()
    if "\0" in request.path or b"%00" in request.query_string:
        raise Refused("The address holds a NUL character.", code="invalid_value")


def finish(response: Response) -> Response:
    """The headers that every answer carries, errors and files included."""
    headers = response.headers
    if "request_id" in g:
        headers["x-request-id"] = g.request_id
        headers["openai-processing-ms"] = str(round((time.monotonic() - g.started) * 1000))
    headers["Content-Security-Policy"] = current_app.config["CONTENT_SECURITY_POLICY"]
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"  # the CSRF check over https reads the referrer
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Permissions-Policy"] = "camera=(), microphone=(), geolocation=()"
    if current_app.config["HTTPS"]:
        headers["Strict-Transport-Security"] = "max-age=31536000; includeSubDomains"
    never_changes = "immutable" in headers.get("Cache-Control", "")
    if g.get("caller") is not None and not never_changes:
        headers["Cache-Control"] = "no-store"
    else:
        headers.setdefault("Cache-Control", "no-store")
    return response
