"""Refusals have the form of OpenAI's errors."""

import pytest

from experiments.serving.refusals import RefusalError


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_status_says_what_kind_of_error_it_is(status, kind):
    refusal = RefusalError("no", status=status, param="x", code="y")
    error = {"message": "no", "type": kind, "param": "x", "code": "y"}
    assert refusal.body() == {"error": error}
