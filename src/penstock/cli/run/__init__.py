"""`penstock run`: requests from a file or a pipe, answers into another.

`command` is the run itself; `arguments` are what it is told; `lines`, `requests` and `template` read the input, `feed`
hands it on; `output` and `report` write; `interrupt` and `thread` are how it stops, and how files are kept off the
event loop.
"""
