"""Ctrl-C and SIGTERM as a wish to stop: the loop sees the first one, the second one kills."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MESSAGE = b"\nstopping after this step; the same signal again stops at once, without saving\n"


class Interrupts:
    """Catches the two signals while a block of code runs.

    The first one sets `signal` and gives that signal back its usual effect, so that a second one
    ends the process at once, even in the middle of a long step. Python delivers signals to the
    main thread only; in another one nothing is caught.

    Attributes:
        signal: the number of the signal that came, 0 while none did.

    Example:
        >>> import os, signal
        >>> from llmcore.training.interrupt import Interrupts
        >>> with Interrupts(quiet=True) as stop:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     stop.signal == signal.SIGTERM
        True
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.signal = 0
        self._quiet = quiet
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
        if not self._quiet:
            os.write(2, _MESSAGE)  # a print here could meet a print that the signal interrupted
