"""Messages: what may stand in a history, and how an answer goes back.

`history` gives the one verdict, for conversations, tool loops and saved ones alike; `blocks` is what it is made of.
"""
