"""Images and documents as content blocks, prepared in worker threads.

`blocks` makes them; `pictures`, `fitting` and `pdf` prepare what they hold, `sources` reads it.
"""
