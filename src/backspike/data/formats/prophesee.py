"""What Prophesee's files share: a header of lines such as `% evt 3.0`, and counters that wrap."""

import numpy as np

END = b"% end"


def split_header(data: bytes) -> tuple[dict[str, str], int]:
    """The words after the first one of each header line, by that word, and the header's length."""
    header, at = {}, 0
    while data[at : at + 2] == b"% ":
        end = data.find(b"\n", at)
        end = len(data) if end < 0 else end + 1
        line = data[at:end].rstrip()
        at = end
        if line == END:
            break
        key, _, value = line[2:].decode("ascii", "replace").partition(" ")
        header[key.lower()] = value.strip()
    return header, at


def encoding(header: dict[str, str]) -> str:
    """ "EVT3", "EVT2", ... by the lines `% format EVT3;...` or `% evt 3.0`; "" if neither is there.

    A file "DAT" tells what its events are instead, in a line `% Data file containing ...`.
    """
    if "format" in header:
        return header["format"].partition(";")[0].strip().upper()
    version = header.get("evt", "")
    return f"EVT{version.removesuffix('.0').replace('.', '')}" if version else ""


def unwrapped(values: np.ndarray, bits: int) -> np.ndarray:
    """Counters of so many bits as int64 [N]; a step back by more than half is a wrap."""
    out = values.astype(np.int64)
    wraps = np.diff(out, prepend=out[:1]) < -(1 << bits - 1)
    return out + (np.cumsum(wraps) << bits) if wraps.any() else out
