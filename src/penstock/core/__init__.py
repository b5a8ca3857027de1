"""What every part builds on: values and protocols of one request's life, without I/O of their own.

`call` and `attempt` are the two scopes of a request; `tap` watches its body, `failure` says what a failure means,
`usage` and `sse` read what the API sends, `context` holds what the caller said, `events` what others may hear, `secret`
keeps keys from view.
"""
