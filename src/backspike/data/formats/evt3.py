"""Prophesee's raw recordings in the format EVT 3.0.

Little-endian 16-bit words after the text header, each of which changes one thing; bits 12-15 are
the type: 0 sets y (bits 0-10), 8 and 6 set the higher and the lower 12 bits of the time in
microseconds, 2 is an event at x (bits 0-10) with its polarity (bit 11), 3 sets x and polarity for
the words of type 4 and 5: these hold a bit for each of the next 12 or 8 pixels, and advance x. A
new higher part of the time sets the lower one to 0. The time wraps after 2^24 us (16.8 s). Types 7,
10, 14 and 15 (triggers, monitoring) are skipped; so are events before the first time, row or x.
Format: Prophesee's description of EVT 3.0.
"""

import numpy as np

from ...errors import DataError
from . import Events, fitting
from .evt2 import raw_words
from .prophesee import unwrapped

HEADER = b"% evt 3.0\n% format EVT3;height=720;width=1280\n% end\n"
ROW, SINGLE, BASE, TWELVE, EIGHT, LOW, HIGH = 0, 2, 3, 4, 5, 6, 8
SKIPPED = (7, 10, 14, 15)
SIDE = 1 << 11


def decode(data: bytes, name: str = "<bytes>") -> Events:
    """The events of one file, in file order.

    Raises DataError for another format, an unknown type, an event outside 2048 columns, and an
    incomplete last word.
    """
    words, start = raw_words(data, name, "EVT3", np.dtype("<u2"))
    kind = (words >> 12).astype(np.uint8)
    known = np.isin(kind, (ROW, SINGLE, BASE, TWELVE, EIGHT, LOW, HIGH, *SKIPPED))
    if not known.all():
        i = int(np.argmin(known))
        raise DataError.at(name, start + 2 * i, f"a word of unknown type {kind[i]}: damaged")
    at, x, p = _pixels(words, kind)
    row, t = _last(kind == ROW, words & 0x7FF, at), _times(words, kind, at)
    whole = (row >= 0) & (t >= 0) & (x >= 0)
    at, x, y, t, p = at[whole], x[whole], row[whole], t[whole], p[whole]
    if x.max(initial=0) >= SIDE:
        i = int(np.argmax(x >= SIDE))
        raise DataError.at(name, start + 2 * int(at[i]), f"an event at x={x[i]}: damaged")
    return Events(x.astype(np.uint16), y.astype(np.uint16), t, p.astype(np.uint8))


def _pixels(words: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each event, in file order: the number of its word, x (negative: unknown), polarity."""
    (single,) = np.nonzero(kind == SINGLE)
    (vector,) = np.nonzero((kind == TWELVE) | (kind == EIGHT))
    advance = np.where(kind[vector] == TWELVE, 12, 8)
    before = np.cumsum(advance) - advance  # columns passed by the vectors before this one
    # x is the base plus what vectors have passed since the base was set
    (base,) = np.nonzero(kind == BASE)
    passed = np.append(before, np.sum(advance))[np.searchsorted(vector, base)]
    shifted = (words[base] & 0x7FF).astype(np.int64) - passed
    last = np.searchsorted(base, vector) - 1
    known = last >= 0
    vector, advance, before, last = vector[known], advance[known], before[known], last[known]
    bits = np.unpackbits(words[vector].view(np.uint8).reshape(-1, 2), axis=1, bitorder="little")
    i, column = np.nonzero(bits[:, :12] & (np.arange(12) < advance[:, None]))
    at = np.concatenate([single, vector[i]])
    x = np.concatenate([words[single] & 0x7FF, shifted[last[i]] + before[i] + column])
    p = np.concatenate([words[single] >> 11 & 1, words[base[last[i]]] >> 11 & 1])
    order = np.argsort(at, kind="stable")
    return at[order], x[order], p[order]


def _times(words: np.ndarray, kind: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The time at each word number in `at`; negative: unknown."""
    (at_high,) = np.nonzero(kind == HIGH)
    high = unwrapped(words[at_high] & 0xFFF, 12)
    changed = np.diff(high, prepend=-1) != 0
    sets_low = kind == LOW
    sets_low[at_high[changed]] = True
    low = np.where(kind == HIGH, 0, words & 0xFFF)
    last = np.cumsum(kind == HIGH)[at] - 1
    t = high[last] << 12 if len(high) else np.zeros(len(at), np.int64)
    return np.where(last >= 0, t | _last(sets_low, low, at), -1)


def _last(sets: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The value of the last word before `at` that `sets` it, int64; -1: there is none."""
    (places,) = np.nonzero(sets)
    if not len(places):
        return np.full(len(at), -1, np.int64)
    last = np.cumsum(sets)[at] - 1
    return np.where(last >= 0, values[places[last]].astype(np.int64), -1)


def encode(events: Events) -> bytes:
    """The bytes of a file with a word of type 2 for each event; `decode` inverts it.

    Times must not decrease. Raises DataError for the first event that does not fit: x or y of 2^11
    or more, a polarity other than 0 and 1, a time outside [0, 2^24) us.
    """
    x, y, t, p = fitting(events, "EVT 3.0", SIDE, 1 << 24)
    values = np.stack([HIGH << 12 | t >> 12, LOW << 12 | t & 0xFFF, y, SINGLE << 12 | p << 11 | x])
    new = np.diff(values, prepend=-1, axis=1) != 0
    new[1] |= new[0]  # a new higher part has set the lower one to 0
    new[3] = True
    return HEADER + values.T[new.T].astype("<u2").tobytes()
