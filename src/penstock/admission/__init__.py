"""Who may send next, with which key: the waiting line, the token buckets, the quotas that own them, and the key pool.

`limits` says how much there is, `bucket` counts it, `quota` keeps the buckets of an organization, `keys` the pool of
keys and quotas, `estimate` guesses what a request will cost, `line` lets requests in, one after the other.
"""
