"""What every part builds on: values and protocols of one request's life, without I/O of their own.

`call` and `attempt` are the two scopes of a request; `body` reads its answer as it goes by, `failure` says what a
failure means, `usage` what it used, `models` what a model is, `size` and `images` what a request holds; `context` keeps
what the caller said, `secret` keeps keys from view. Nothing here is public.
"""
