"""AEDAT 2.0 and 3.1 and the text files of DVS128 Gesture: hand-made bytes, round trips, damage."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backspike.data import DataError, Events
from backspike.data.formats import aedat2, aedat3
from backspike.data.sets import dvs128_gesture as gesture

HEADER2 = (
    b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps tick is 1 us\r\n"
)
HEADER3 = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n"
    b"#Start-Time: 2016-10-17 12:33:53 (TZ+0200)\r\n#!END-HEADER\r\n"
)


def assert_events(events, x, y, t, p):
    assert [axis.tolist() for axis in (events.x, events.y, events.t, events.p)] == [x, y, t, p]
    assert (events.x.dtype, events.y.dtype, events.t.dtype, events.p.dtype) == (
        np.uint16,
        np.uint16,
        np.int64,
        np.uint8,
    )


def rows(x, y, t):
    return st.lists(
        st.tuples(st.integers(0, x), st.integers(0, y), st.integers(0, t), st.integers(0, 1)),
        max_size=30,
    )


def make_events(table):
    return Events(*np.array(table, np.int64).reshape(-1, 4).T)


# AEDAT 2.0


def test_aedat2_reads_hand_made_events():
    """Bits: 16 zeros, external event, y (7), x (7), polarity; then the time.

    SpikingJelly's view is mirrored and transposed.
    """
    bits = (
        f"{0:016b}0{5:07b}{100:07b}1{70000:032b}" + f"{0:016b}0{127:07b}{0:07b}0{0xFFFFFFFF:032b}"
    )
    data = HEADER2 + int(bits, 2).to_bytes(16, "big")
    assert_events(
        aedat2.decode(data, upright=False), [100, 0], [5, 127], [70000, 0xFFFFFFFF], [1, 0]
    )
    assert_events(
        aedat2.decode(data), [127 - 5, 127 - 127], [127 - 100, 127 - 0], [70000, 0xFFFFFFFF], [0, 1]
    )


def test_aedat2_drops_events_that_come_from_no_pixel():
    words = [(3 << 8 | 4 << 1, 1), (0x8000, 2), (5 << 8 | 6 << 1 | 1, 3)]
    data = HEADER2 + b"".join(struct.pack(">II", *word) for word in words)
    assert_events(aedat2.decode(data, upright=False), [4, 6], [3, 5], [1, 3], [0, 1])


@given(rows(127, 127, 2**32 - 1), st.booleans())
def test_aedat2_round_trip(table, upright):
    events = make_events(table)
    assert_events(
        aedat2.decode(aedat2.encode(events, upright), upright=upright),
        *([int(v) for v in axis] for axis in (events.x, events.y, events.t, events.p)),
    )


def test_aedat2_file_cut_at_any_byte_is_refused_or_shorter():
    data = HEADER2 + aedat2.encode(make_events([(1, 2, 3, 0), (4, 5, 6, 1)])).split(b"edit\r\n")[1]
    for size in range(len(data)):
        whole = size - len(HEADER2)
        if size in (cut + 2 for cut in range(len(HEADER2)) if data[cut : cut + 2] == b"\r\n") or (
            whole >= 0 and whole % 8 == 0
        ):
            assert len(aedat2.decode(data[:size])) == max(whole, 0) // 8
        else:
            with pytest.raises(
                DataError,
                match=r"^cat/cifar10_cat_1\.aedat: byte \d+: (truncated|not an AEDAT 2\.0)",
            ) as error:
                aedat2.decode(data[:size], "cat/cifar10_cat_1.aedat")
            assert int(str(error.value).split("byte ")[1].split(":")[0]) <= size


def test_aedat2_refuses_other_files():
    with pytest.raises(
        DataError, match=r"f: byte 0: not an AEDAT 2\.0 file: it begins with b'#!AER-DAT3\.1"
    ):
        aedat2.decode(HEADER3, "f")
    data = HEADER2 + struct.pack(">4I", 1, 1, 0x10000, 1)
    with pytest.raises(
        DataError, match=rf"f: byte {len(HEADER2) + 8}: address 00010000 is no pixel of a DVS128"
    ):
        aedat2.decode(data, "f")


@pytest.mark.parametrize(
    "bad",
    [(128, 0, 0, 0), (0, 128, 0, 0), (0, 0, 2**32, 0), (0, 0, -1, 0), (0, 0, 0, 2), (-1, 0, 0, 0)],
)
def test_aedat_encoders_refuse_events_that_do_not_fit(bad):
    with pytest.raises(DataError, match="event 1 does not fit"):
        aedat2.encode(make_events([(1, 1, 1, 1), bad]))
    x, y, t, p = bad
    with pytest.raises(DataError, match="event 1 does not fit"):
        aedat3.encode(make_events([(1, 1, 1, 1), (x << 8, y << 8, t << 30, p)]))


# AEDAT 3.1


def packet(words, kind=1, size=8, time_at=4, overflow=0, capacity=None, number=None):
    n = len(words)
    capacity, number = n if capacity is None else capacity, n if number is None else number
    body = b"".join(struct.pack("<II", *word) for word in words)
    return struct.pack("<hhiiiiii", kind, 1, size, time_at, overflow, capacity, number, n) + body


def pixel(x, y, p, valid=1):
    return x << 17 | y << 2 | p << 1 | valid


def test_aedat3_reads_hand_made_packets():
    """Two packets of polarity events; an overflow and a packet of another type in between."""
    data = (
        HEADER3
        + packet([(pixel(127, 1, 1), 10), (pixel(0, 32767, 0), 2**31 - 1)])
        + struct.pack("<hhiiiiii", 2, 1, 36, 12, 0, 1, 1, 1)
        + bytes(36)
        + packet([(pixel(5, 6, 1), 3)], overflow=2)
    )
    assert_events(
        aedat3.decode(data), [127, 0, 5], [1, 32767, 6], [10, 2**31 - 1, 2 * 2**31 + 3], [1, 0, 1]
    )


def test_aedat3_skips_invalid_and_unused_events():
    words = [
        (pixel(1, 2, 0), 1),
        (pixel(9, 9, 1, valid=0), 2),
        (pixel(3, 4, 1), 3),
        (pixel(8, 8, 1), 4),
    ]
    assert_events(aedat3.decode(HEADER3 + packet(words, number=3)), [1, 3], [2, 4], [1, 3], [0, 1])


@given(rows(32767, 32767, 2**62 - 1), st.integers(1, 7))
def test_aedat3_round_trip(table, size):
    events = make_events(table)
    assert_events(
        aedat3.decode(aedat3.encode(events, size)),
        *([int(v) for v in axis] for axis in (events.x, events.y, events.t, events.p)),
    )


def test_aedat3_file_cut_at_any_byte_is_refused_or_shorter():
    packets = [packet([(pixel(1, 2, 0), 1), (pixel(1, 2, 0), 1)]), packet([(pixel(3, 4, 1), 3)])]
    data = HEADER3 + b"".join(packets)
    ends = {len(HEADER3): 0, len(HEADER3) + len(packets[0]): 2, len(data): 3}
    for size in range(len(data) + 1):
        if size in ends:
            assert len(aedat3.decode(data[:size])) == ends[size]
        else:
            with pytest.raises(
                DataError, match=r"^user01_led\.aedat: byte \d+: (truncated|not an AEDAT 3\.1)"
            ) as error:
                aedat3.decode(data[:size], "user01_led.aedat")
            assert int(str(error.value).split("byte ")[1].split(":")[0]) <= size


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"capacity": 2**31 - 1}, "truncated: a packet of 17179869176 bytes, the file has 8 more"),
        ({"size": 0}, "damaged packet: 1 of 1 events of 0 bytes"),
        ({"size": -8}, "damaged packet"),
        ({"number": 2}, "damaged packet: 2 of 1 events"),
        ({"number": -1}, "damaged packet"),
        ({"overflow": -1}, "damaged packet"),
        ({"time_at": 0}, "polarity events of 8 bytes, time at 0"),
        ({"size": 4}, "polarity events of 4 bytes"),
    ],
)
def test_aedat3_damaged_packets(damage, message):
    with pytest.raises(DataError, match=rf"^f: byte \d+: .*{message}"):
        aedat3.decode(HEADER3 + packet([(pixel(1, 1, 1), 1)], **damage), "f")


def test_aedat3_refuses_other_files():
    with pytest.raises(DataError, match=r"f: byte 0: not an AEDAT 3\.1 file"):
        aedat3.decode(HEADER2, "f")
    with pytest.raises(
        DataError, match="f: byte 14: events coded as 'PNGFrames': only RAW is supported"
    ):
        aedat3.decode(HEADER3.replace(b"RAW", b"PNGFrames"), "f")


# DVS128 Gesture


def test_gesture_labels():
    """The first lines of an official file."""
    text = (
        b"class,startTime_usec,endTime_usec\n"
        b"1,80048239,85092709\n2,89431170,95231007\n11,180675853,187389051\n"
    )
    assert gesture.labels(text) == [
        gesture.Gesture(0, 80048239, 85092709),
        gesture.Gesture(1, 89431170, 95231007),
        gesture.Gesture(10, 180675853, 187389051),
    ]
    assert gesture.labels(text.replace(b"\n", b"\r\n") + b"\r\n") == gesture.labels(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1,2", "'1,2' is not three whole numbers"),
        (b"1,-2,3", "is not three whole numbers"),
        (b"1,2.5,3", "is not three whole numbers"),
        (b"1,2," + b"9" * 5000, "is not three whole numbers"),
        (b"0,2,3", "class 0 from 2 to 3: classes are 1 to 11"),
        (b"1,3,2", "class 1 from 3 to 2"),
        (b"1,2,\xff", "not ASCII text"),
    ],
)
def test_error_for_gesture_labels_gives_the_offset_of_the_invalid_line(line, message):
    title = b"class,startTime_usec,endTime_usec\n1,2,3\n"
    with pytest.raises(
        DataError, match=rf"^f: byte {len(title) + max(line.find(0xFF), 0)}: .*{message}"
    ):
        gesture.labels(title + line, "f")
    with pytest.raises(DataError, match="f: byte 0: the first line is '1,2,3'"):
        gesture.labels(b"1,2,3\n", "f")
    for empty in (b"", b"class,startTime_usec,endTime_usec\n"):
        with pytest.raises(DataError, match=rf"f: byte {len(empty)}: truncated: no gestures"):
            gesture.labels(empty, "f")


def test_gesture_trials():
    assert gesture.trials(b"user01_fluorescent_led.aedat\r\n\r\nuser29_natural.aedat") == [
        gesture.Trial("user01_fluorescent_led.aedat", 1, 1),
        gesture.Trial("user29_natural.aedat", 29, 4),
    ]
    for bad in (
        b"../user01_led.aedat",
        b"user1_led.aedat",
        b"user01_led.aedat.exe",
        b"/etc/passwd",
        b"user01_dark.aedat",
    ):
        with pytest.raises(DataError, match=r"f: byte 17: .* is not a recording"):
            gesture.trials(b"user01_lab.aedat\n" + bad, "f")
    with pytest.raises(DataError, match="f: byte 0: truncated"):
        gesture.trials(b"", "f")


def test_a_valid_event_before_the_clock_is_refused_with_its_offset():
    events = Events(
        *(np.arange(6, dtype=d) for d in (np.uint16, np.uint16, np.int64)), np.zeros(6, np.uint8)
    )
    data = bytearray(aedat3.encode(events, packet=4))
    at = len(data) - 8  # the second of two packets: its second event
    data[at + 7] |= 0x80
    with pytest.raises(DataError, match=f"byte {at}: an event before the start of the clock"):
        aedat3.decode(bytes(data))
    data[at] &= 0xFE  # no event at all
    assert aedat3.decode(bytes(data)).t.tolist() == [0, 1, 2, 3, 4]
