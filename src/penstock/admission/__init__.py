"""Who may send next, with which key: the waiting line, the limits it spends from, and the keys.

`fair_queue` says who is next, `line` lets them in. `limits` says how much there is, `bucket` counts it, `quota` keeps
the buckets of an organization and `ramp` bounds its growth. `keys` is the pool of keys and quotas, `quarantine` keeps
some from use, `concurrency` is the slots. `estimate` and `images` guess what a request will cost, `feedback` learns
from answers, `options` says what can be set, `statistics` shows it all.
"""
