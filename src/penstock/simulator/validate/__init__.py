"""Is this request one that the API accepts? Whatever is here raises the API's own error where it isn't.

`request` looks at headers and body, `fields` at the fields of the body; `thinking`, `tools`, `messages`, `turns` and
`media` at what their names say. Messages are the API's where they are known (from its documentation and public logs),
in its style where not.
"""

from penstock.simulator.validate.fields import (
    bills_user_profile,
    check_count,
    check_create,
    check_payer,
    check_window,
    model_name,
)
from penstock.simulator.validate.request import check_size, check_version, find_key, page_size, parse

__all__ = [
    "bills_user_profile",
    "check_count",
    "check_create",
    "check_payer",
    "check_size",
    "check_version",
    "check_window",
    "find_key",
    "model_name",
    "page_size",
    "parse",
]
