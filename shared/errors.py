"""One error for everything that a person or a script can put right."""


class Refused(Exception):
    """What was asked for cannot be done as it stands; nothing was changed.

    `message` is a sentence: what is wrong, where (row, field), what to do.
    `param` names the field, `code` is a stable word for scripts, `status` the HTTP status (4xx).
    `retry` is true where the same request may go through later.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_value",
        status: int = 400,
        retry: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status
        self.retry = retry


class NotFound(Refused):
    """No such object, or another team's: the two look the same from outside."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(f"No {what} «{name}» in this team.", param="id", code="not_found", status=404)


class Unreadable(Exception):
    """Why one file of many cannot be read, without its name: «is cut short»."""
