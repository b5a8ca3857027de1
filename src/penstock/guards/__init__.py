"""The guards that a request passes, a room each, every one a middleware of the official SDK that also works alone.

They never import each other; `penstock.chain` puts them in order. `record` opens the call and reports how it ended,
`sanitize` looks at what goes out, `retry` tries again, `breaker` refuses while a service is down, `admit` waits in line
for quota, slot and key, `meter` counts what came back.
"""

from __future__ import annotations
