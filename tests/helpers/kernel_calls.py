"""Record calls of the C kernels with all memory that they use, for tests/kernel/replay.c.

A recording is a file of little-endian int64 numbers and of bytes; `write` shows its format.
"""

import ctypes
import struct
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from backspike.kernel.cpu import library

POINTER = ctypes.c_void_p
NO_RESULT = -(2**63)
SCRATCH = ("p_scratch", "p_cache")  # what is left there depends on the threads


@dataclass
class Buffer:
    address: int
    before: bytes
    compared: bool
    after: bytes = b""


@dataclass
class Recorded:
    """One call. Pointers and arguments name buffers by number; -1 is a plain value."""

    name: str
    buffers: list = field(default_factory=list)
    pointers: list = field(default_factory=list)  # of a struct: buffer, offset, target, its offset
    arguments: list = field(default_factory=list)  # buffer, offset or value
    result: int = NO_RESULT


@contextmanager
def recorded():
    """The calls inside the context, a list of `Recorded`."""
    calls, kernels, data_ptr = [], library._c, torch.Tensor.data_ptr
    library._c = _Recorder(kernels, calls)
    torch.Tensor.data_ptr = lambda x: _remember(x, data_ptr(x))
    try:
        yield calls
    finally:
        library._c = kernels
        del torch.Tensor.data_ptr


def write(calls, path):
    with open(path, "wb") as file:

        def put(*numbers):
            file.write(struct.pack(f"<{len(numbers)}q", *numbers))

        put(len(calls))
        for call in calls:
            file.write(call.name.encode().ljust(64, b"\0"))
            put(len(call.buffers), len(call.pointers), len(call.arguments), call.result)
            for b in call.buffers:
                put(len(b.before), b.compared)
                file.write(b.before + b.after)
            for numbers in (*call.pointers, *call.arguments):
                put(*numbers)


class _Recorder:
    """The library, with functions that record."""

    def __init__(self, kernels, calls):
        self.kernels, self.calls = kernels, calls

    def __getattr__(self, name):
        function = getattr(self.kernels, name)

        def call(*arguments):
            function.restype = ctypes.c_int64
            one = _before(name, arguments)
            result = function(*arguments)
            if name.startswith("pack_"):
                one.result = result
            for b in one.buffers:
                b.compared &= (
                    one.result >= 0 or one.result == NO_RESULT
                )  # else it gave up somewhere
                b.after = ctypes.string_at(b.address, len(b.before))
            self.calls.append(one)
            return result

        return call


def _before(name, arguments):
    one, places = Recorded(name), {}
    for argument in arguments:
        job = getattr(argument, "_obj", None)
        if job is not None:
            one.arguments.append((_add_struct(one, job, places), 0))
        elif isinstance(argument, POINTER):
            one.arguments.append(_find(one, argument.value, places))
        else:
            one.arguments.append((-1, argument.value))
    return one


def _add_struct(one, job, places):
    number, address = len(one.buffers), ctypes.addressof(job)
    job_bytes = ctypes.string_at(address, ctypes.sizeof(job))
    one.buffers.append(Buffer(address, job_bytes, compared=False))
    for offset, name, value in _pointers(job, 0):
        target, place = _find(one, value, places, name not in SCRATCH)
        one.pointers.append((number, offset, target, place))
    return number


def _pointers(job, start):
    """Offset, name and value of every pointer of a struct that is not null."""
    if isinstance(job, ctypes.Array):
        for i, item in enumerate(job):
            yield from _pointers(item, start + i * ctypes.sizeof(item))
        return
    for name, kind in job._fields_:
        offset = start + getattr(type(job), name).offset
        if issubclass(kind, ctypes.Structure):
            yield from _pointers(getattr(job, name), offset)
        elif kind is POINTER and getattr(job, name):
            yield offset, name, getattr(job, name)


def _find(one, pointer, places, compared=True):
    """The number of the buffer that holds this address, and the place in it."""
    for (start, end), number in places.items():
        if start <= pointer < end:
            return number, pointer - start
    start, size = _memory[pointer]
    places[start, start + size] = len(one.buffers)
    one.buffers.append(Buffer(start, ctypes.string_at(start, size), compared))
    return len(one.buffers) - 1, pointer - start


_memory = {}  # the storage of each pointer that a kernel was given: start, size


def _remember(x, pointer):
    storage = x.untyped_storage()
    _memory[pointer] = storage.data_ptr(), storage.nbytes()
    return pointer
