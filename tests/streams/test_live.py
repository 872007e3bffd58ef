"""`backspike stream`: what it reads, what it answers, and how it ends."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import backspike as bs
from backspike import recipes
from backspike.cli import main
from backspike.data.formats import Events, aedat2, aedat3, atis
from backspike.data.frames import channels, frames
from backspike.errors import DataError
from backspike.streams.live import Latency
from backspike.streams.read import read

RECIPE = recipes.get("digits-dvs")


def recorded(n=400, side=32, seed=0):
    r = np.random.default_rng(seed)
    x, y, p = r.integers(0, side, n), r.integers(0, side, n), r.integers(0, 2, n)
    return Events(x.astype(np.uint16), y.astype(np.uint16), np.sort(r.integers(0, 90_000, n)), p)


def text(e):
    return "".join(f"{t} {x} {y} {p}\n" for t, x, y, p in zip(e.t, e.x, e.y, e.p)).encode()


def answers(capsys):
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err.strip().splitlines()


def timesteps(source, window=None, recipe=RECIPE, stdin=b""):
    return np.stack(list(read(str(source), io.BytesIO(stdin), recipe, window)))


def sensor():
    return bs.data.source("digits-dvs").shape[-1]


@pytest.mark.parametrize("name", ["a.bin", "a.aedat"])
def test_a_recording_is_cut_as_in_training(name, tmp_path):
    side, events = sensor(), recorded(side=sensor())
    (tmp_path / name).write_bytes((atis if name == "a.bin" else aedat2).encode(events))
    found = timesteps(tmp_path / name)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, frames(events, RECIPE.T, side, RECIPE.size))


def test_windows_hold_the_events_of_their_microseconds(tmp_path):
    events, window = recorded(side=sensor()), 7_000
    (tmp_path / "a.bin").write_bytes(atis.encode(events))
    expected = []
    for k in range(int(events.t[-1] - events.t[0]) // window + 1):
        inside = (events.t - events.t[0]) // window == k
        part = Events(*(getattr(events, f)[inside] for f in "xytp"))
        expected.append(frames(part, 1, sensor(), RECIPE.size)[0])
    np.testing.assert_array_equal(timesteps(tmp_path / "a.bin", window), expected)
    np.testing.assert_array_equal(timesteps("-", window, stdin=text(events)), expected)
    commas = text(events).replace(b" ", b", ")
    (tmp_path / "a.txt").write_bytes(b"\n" + commas)
    np.testing.assert_array_equal(timesteps(tmp_path / "a.txt", window), expected)


def test_silent_windows_are_timesteps_too():
    found = timesteps("-", 10, stdin=b"5 1 1 0\n46 2 2 1\n")
    assert found.sum((1, 2, 3)).tolist() == [1, 0, 0, 0, 1]


def test_a_version_3_file_is_told_by_its_header(tmp_path):
    (tmp_path / "a.aedat").write_bytes(aedat3.VERSION + b"\r\n")
    with pytest.raises(DataError, match="truncated"):
        timesteps(tmp_path / "a.aedat")


def test_channels_are_counted_as_in_training():
    recipe = RECIPE.replace({"data": "shd", "size": 70})
    events = recorded()
    events = Events(events.x * 20, events.y * 0, events.t, events.p)
    found = timesteps("-", 100_000, recipe, text(events))
    np.testing.assert_array_equal(found, channels(events, 1, size=70))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1 2 3\n", "line 1: .* is not an event"),
        (b"1 2 3 1\n1 2 3 2\n", "line 2: .* is not an event"),
        (b"500 2 3 1\n600 2 3 1\n100 2 3 1\n", "line 3: an event at 100 us comes after later ones"),
        (b"1 2 3 1\n999999999999 2 3 1\n", "line 2: no event for more than 1048576 timesteps"),
        (b"1 900 3 1\n", "x=900 .* is outside the sensor"),
        (b"[[0, 1], [2]]\n", "line 1: not a frame"),
        (b"[[0, 1]]\n[[0, 1", "line 2: not a frame"),
        (b"", "is empty"),
    ],
)
def test_damaged_text_names_its_line(content, message):
    with pytest.raises(DataError, match=message):
        timesteps("-", 90, stdin=content)


def test_the_last_answer_to_a_recording_is_that_of_the_network(tmp_path, capsys):
    events = recorded(3_000, sensor())
    (tmp_path / "a.bin").write_bytes(atis.encode(events))
    assert main(["stream", "digits-dvs", "--events", str(tmp_path / "a.bin"), "--json"]) == 0
    lines, errors = answers(capsys)
    *found, done = lines
    network = bs.load("digits-dvs")
    x = torch.from_numpy(frames(events, RECIPE.T, sensor(), RECIPE.size)).float()[:, None]
    with torch.no_grad():
        outputs, logits = network.model(x), network(x)
    assert [answer["timestep"] for answer in found] == list(range(RECIPE.T))
    outputs_found = torch.tensor([answer["output"] for answer in found])
    torch.testing.assert_close(outputs_found, outputs[:, 0], rtol=1e-3, atol=1e-3)
    assert found[-1]["class"] == logits.argmax().item()
    assert done["event"] == "done"
    assert done["timesteps"] == RECIPE.T
    assert 0 < done["median"] <= done["p99"] <= done["worst"]
    assert errors[0].startswith(f"{RECIPE.T} timesteps; latency in microseconds: median ")


def test_frames_from_an_array_and_from_json_are_answered_alike(tmp_path, capsys):
    x = np.random.default_rng(1).random((6, 1, 8, 8)).round(2)
    np.save(tmp_path / "a.npy", x)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(frame.tolist()) + "\n" for frame in x))
    found = []
    for name in ("a.npy", "a.jsonl"):
        assert main(["stream", "digits", "--events", str(tmp_path / name)]) == 0
        found.append(answers(capsys)[0])
    assert found[0] == found[1]
    assert len(found[0]) == 6


def test_a_truncated_file_ends_with_one_error_line_after_its_answers(tmp_path, capsys):
    frame = json.dumps(np.zeros((1, 8, 8)).tolist())
    (tmp_path / "a.jsonl").write_text(f"{frame}\n{frame}\n{frame[:100]}")
    assert main(["stream", "digits", "--events", str(tmp_path / "a.jsonl")]) == 1
    found, errors = answers(capsys)
    assert len(found) == 2
    assert errors[0].startswith("2 timesteps; latency")
    assert errors[1].startswith(f"backspike: {tmp_path / 'a.jsonl'}: line 3: not a frame")
    assert len(errors) == 2


@pytest.mark.parametrize(
    ("words", "content", "code", "message"),
    [
        (["digits", "--realtime"], b"[[[0]]]", 2, "--realtime needs --window"),
        (["digits-dvs"], b"1 2 3 1\n", 2, "events as text need --window"),
        (["digits", "--window", "5"], b"1 2 3 1\n", 1, "trained on digits, which are not"),
        (["digits"], b"[[[0, 1], [2, 3]]]", 1, "timestep 0: the network does not take a frame"),
        (["digits", "--window", "0"], b"", 2, "must be at least 1"),
        (["none"], b"", 1, "neither a run folder nor"),
    ],
)
def test_wrong_use_is_one_line(words, content, code, message, tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(content)
    assert main(["stream", *words, "--events", str(tmp_path / "a.txt")]) == code
    found, errors = answers(capsys)
    assert found == []
    assert len(errors) == 1
    assert message in errors[0]


def test_a_missing_file_is_one_line(capsys):
    assert main(["stream", "digits", "--events", "none.txt"]) == 1
    assert answers(capsys)[1] == ["backspike: none.txt: No such file or directory; check this path"]


def test_real_time_waits_for_the_end_of_each_window(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.zeros((5, 1, 8, 8), np.uint8))
    words = ["stream", "digits", "--events", str(tmp_path / "a.npy"), "--window", "30000"]
    start = time.perf_counter()
    assert main([*words, "--realtime"]) == 0
    assert time.perf_counter() - start >= 5 * 0.03
    assert len(answers(capsys)[0]) == 5


def test_ctrl_c_ends_an_endless_stream_with_its_latency():
    frame = (json.dumps(np.zeros((1, 8, 8)).tolist()) + "\n").encode()
    words = [sys.executable, "-m", "backspike", "stream", "digits", "--events", "-"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(words, **pipes, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        for t in range(3):  # an answer comes before the next timestep
            process.stdin.write(frame)
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["timestep"] == t
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == b""
    lines = err.decode().splitlines()
    assert re.match("[23] timesteps; latency", lines[0])  # the signal may come within the third
    assert lines[1:] == ["backspike: stopped"]


def test_latencies_are_summed_up_to_one_percent():
    latency, values = Latency(), np.random.default_rng(0).lognormal(-9, 1, 10_000)
    for value in values:
        latency.add(value)
    assert latency.worst == values.max()
    for q in (0.5, 0.99):
        assert math.isclose(latency.quantile(q), np.quantile(values, q), rel_tol=0.02)
    assert math.isnan(Latency().quantile(0.5))
    assert latency.counts.nbytes == Latency().counts.nbytes
