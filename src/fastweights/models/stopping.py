"""Ctrl-C asks a run to stop at the next whole step; asking twice stops it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether the person in front of the run has asked it to end."""

    def __init__(self) -> None:
        self.asked = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a `StopRequest` while the block runs.

    An exception in the middle of an optimiser step would leave weights half updated; a flag is looked at between steps.
    A second signal raises KeyboardInterrupt. Outside the main thread, where Python delivers no signals, the block runs
    as it is.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
