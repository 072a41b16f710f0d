"""What is answered when something is wrong: JSON in OpenAI's form under /v1, a page elsewhere."""

import logging

from flask import Flask, Response, g, jsonify, make_response, render_template, request
from flask_wtf.csrf import CSRFError
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, SecurityError

from shared.errors import Refused
from shared.settings import settings
from shared.storage import Away, readable_size
from web import policy
from web.pulse import Silent

log = logging.getLogger(__name__)
RETRY_SECONDS = 5
SENTENCES = {
    400: "The request could not be read.",
    404: "There is no such page, or it belongs to another team.",
    405: "This address does not take that method.",
    415: "The request's content type does not fit here.",
    429: "Too many tries. Wait a few minutes, then try again.",
}


def install(app: Flask) -> None:
    """Handle every kind of error; nothing leaves as a bare traceback."""
    app.register_error_handler(Refused, refused)
    app.register_error_handler(CSRFError, forged)
    app.register_error_handler(RequestEntityTooLarge, too_large)
    app.register_error_handler(SecurityError, strange_host)
    app.register_error_handler(HTTPException, http)
    app.register_error_handler(DataError, cannot_be_stored)
    for away in (OperationalError, PoolTimeout, Silent, Away):
        app.register_error_handler(away, unavailable)
    app.register_error_handler(Exception, unexpected)


def refused(error: Refused) -> Response:
    """What the caller can put right."""
    response = answer(error.message, error.status, param=error.param, code=error.code)
    if error.status in (409, 429):
        response.headers["x-should-retry"] = "true" if error.retry else "false"
    if error.retry:
        response.headers["Retry-After"] = str(RETRY_SECONDS)
    if error.status == 401 and policy.api_call():
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def forged(_: CSRFError) -> Response:
    """A form without its token: another site sent it, or it was opened before signing in."""
    return answer(
        "This form has grown too old. Load the page again and repeat what you did.", 400, code="csrf"
    )


def too_large(_: RequestEntityTooLarge) -> Response:
    """More bytes than MAX_UPLOAD_BYTES, or a form with too many fields."""
    most = readable_size(
        min(settings().max_upload_bytes, request.max_content_length or settings().max_upload_bytes)
    )
    return answer(f"This is too large: {most} are the most here.", 413, param="file", code="too_large")


def strange_host(_: SecurityError) -> Response:
    """A host name that is not PUBLIC_URL's: a page of another site may have been bent to this address."""
    return Response(
        "This server does not answer to that host name: PUBLIC_URL names its own.\n",
        400,
        mimetype="text/plain",
    )


def cannot_be_stored(_: DataError) -> Response:
    """Text with a NUL, a number beyond the column's range: whatever the checks before it let through."""
    return answer(
        "Something in the request cannot be stored, such as a NUL character.", 400, code="invalid_value"
    )


def http(error: HTTPException) -> Response:
    """What Flask and Werkzeug refuse by themselves."""
    if error.response is not None:
        return make_response(error.response)
    status = error.code or 500
    if status == 404 and policy.api_call():
        return answer(f"Unknown request URL: {request.method} {request.path}.", 404, code="unknown_url")
    response = answer(SENTENCES.get(status, error.description or error.name), status, code=None)
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def unavailable(error: Exception) -> Response:
    """The database or the store is away: say so, and when to come back. Nothing around the page is asked for."""
    if not isinstance(getattr(error, "orig", error), Silent):  # of which the log has been told once
        log.error("a part is away: %s", type(error).__name__, exc_info=error)
    g.caller = None
    part = "store" if isinstance(error, Away) else "database"
    response = answer(
        f"The {part} does not answer just now. What runs goes on meanwhile. Try again in a moment.",
        503,
        code="unavailable",
    )
    response.headers["Retry-After"] = str(RETRY_SECONDS)
    return response


def unexpected(error: Exception) -> Response:
    """A fault of ours: the log has it under the request's number."""
    log.error("request %s failed", g.get("request_id", "?"), exc_info=error)
    if isinstance(error, LookupError) and "web/policy.py" in str(error):
        raise error  # tests must see a route without a rule
    return answer("Something failed here, not with you. It is in the log under this request's number.", 500)


def answer(
    message: str, status: int, *, param: str | None = None, code: str | None = "server_error"
) -> Response:
    """The sentence in the form that the caller reads."""
    if policy.api_call():
        kind = "server_error" if status >= 500 else "invalid_request_error"
        body = {"message": message, "type": kind, "param": param, "code": code}
        response = jsonify({"error": body})
        response.status_code = status
        return response
    page = render_template("error.html", message=message, status=status, request_id=g.get("request_id", ""))
    return make_response(page, status)
