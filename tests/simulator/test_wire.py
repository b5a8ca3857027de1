from __future__ import annotations

import json

from penstock.simulator.wire import ApiError, Request, dump


def test_json_is_compact_and_always_utf8() -> None:
    """Text stays readable; a lone surrogate, which UTF-8 cannot hold, is escaped."""
    assert dump({"a": ["é", 1]}) == '{"a":["é",1]}'.encode()
    assert json.loads(dump({"a": "\ud800"})) == {"a": "\ud800"}


def test_an_error_body_names_the_request() -> None:
    """Type, message and request id always; details only with an error code."""
    plain = ApiError(400, "invalid_request_error", "no").body("req_1")
    assert plain == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "no"},
        "request_id": "req_1",
    }
    coded = ApiError(404, "not_found_error", "no", error_code="gone").body("req_1")
    assert coded["error"]["details"] == {"error_code": "gone"}


def test_a_request_shows_neither_body_nor_headers() -> None:
    """Its repr has the size only."""
    request = Request(method="POST", path="/v1/messages", query={}, headers={"x-api-key": "sk-1"}, body=b"secret")
    assert repr(request) == "Request(POST /v1/messages, 6 bytes)"
