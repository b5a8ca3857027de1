"""Streams: a fast one with the SDK's names (`stream`, `Stream`), and a relay that no slow consumer holds up (`relay`).

What lives here needs nothing but an `AsyncAnthropic`, governed or not. Only what the caller asks for is decoded: the
bytes of all other events are kept, and become a message when one is asked for.
"""

from penstock.streaming.opening import StreamManager, stream
from penstock.streaming.relay import ErrorFrame, FinalFrame, Frame, TextFrame, relay
from penstock.streaming.stream import Stream

__all__ = ["ErrorFrame", "FinalFrame", "Frame", "Stream", "StreamManager", "TextFrame", "relay", "stream"]
