"""Requests that are refused, in the form in which OpenAI's clients expect it."""

from collections.abc import Mapping

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class RefusalError(Exception):
    """A request that can't be answered, and why.

    Attributes:
        status: of the answer, 4xx, or 503 where the server is at fault.
        param: the field of the request that is wrong.
        code: what programs tell cases apart by.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        """Says why; the message names the field or what to do."""
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict:
        """The answer's JSON."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, fallback),
                "param": self.param,
                "code": self.code,
            }
        }
