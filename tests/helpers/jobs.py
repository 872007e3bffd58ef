"""Functions that tests of worker processes call in them."""

import os
import signal
import sys
import time

from backspike.errors import DataError
from backspike.system import workers


def square(x):
    workers.emit(f"squaring {x}")
    print("printed")
    return x * x, os.getpid()


def placed(x, place):
    time.sleep(0.05)
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return place, os.getpid()


def fails(text):
    raise DataError(text)


def exits(x):
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if x == 2:
        sys.exit("no more")
    return x


def loops():
    while True:
        pass


def waits():
    """Until the pipe is closed."""
    workers.emit(os.getpid())
    while not workers.stop_wanted():
        time.sleep(0.01)
    time.sleep(0.1)
    print("stopped", file=sys.stderr, flush=True)
