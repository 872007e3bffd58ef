"""The bench: its gate, its workers, and the numbers and pages it makes."""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.paths import ROOT

import backspike as bs
from backspike import bench, cli
from backspike.bench import density, gate, page, plan, results, workers
from backspike.bench.worker import libraries, limits, networks
from backspike.bench.worker.task import Neuron, Settings, Workload
from backspike.bench.worker.training import Network
from backspike.system import machine

WORK = {w.name: w for w in plan.WORKLOADS}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Runs a bench of one small workload from the command line; its folder and bench.json."""
    out = tmp_path_factory.mktemp("bench")
    options = ["--only=8 bit,plain loop", "--precision=float32", "--rounds=2", "--threads=1"]
    assert cli.main(["bench", "fc-10%", "--quick", *options, "--out", str(out)]) == 0
    return out, json.loads((out / "bench.json").read_text())


def test_a_bench_measures_and_writes_every_row(measured):
    out, report = measured
    assert [w["workload"] for w in report["workloads"]] == ["fc-10%"]
    for workload in report["workloads"]:
        rows = {row["name"]: row for row in workload["rows"]}
        assert set(rows) == {
            "backspike, 8 bit",
            "backspike, 8 bit, lean heap",
            "plain loop",
            "copy",
            "products, fp32",
        }
        ours, plain = rows["backspike, 8 bit"], rows["plain loop"]
        assert ours["speed_against"]["plain loop"] == pytest.approx(
            plain["median"] / ours["median"]
        )
        assert ours["memory_against"]["plain loop"] == pytest.approx(
            ours["memory"]["bytes"] / plain["memory"]["bytes"]
        )
        assert ours["per_second"] == pytest.approx(8 / ours["median"])
        assert ours["share_of_limit"] == pytest.approx(
            rows["products, fp32"]["median"] / ours["median"]
        )
        for row in rows.values():
            times = [t for turn in row["rounds"] for t in turn]
            assert len(row["rounds"]) == 2
            assert row["quartiles"][0] <= row["median"] <= row["quartiles"][1]
            assert min(times) <= row["median"] <= max(times)
        assert 0 < plain["gate"]["error"] < 1e-5
        assert plain["memory"]["bytes"] > 0
    text = (out / "bench.md").read_text()
    assert "plain loop" in text
    assert report["command"] in text
    assert "GFLOP/s" in text
    assert (out / "figures" / "fc-10-time.svg").read_text().startswith("<svg")
    assert "<svg" in (out / "bench.html").read_text()


def test_the_densities_are_those_of_the_workload(measured):
    sparse = measured[1]["workloads"][0]
    assert sparse["spikes"] == pytest.approx([0.1, 0.1], abs=0.003)
    assert sparse["derivatives"] == pytest.approx([0.1, 0.1], abs=0.003)
    # also in the network itself: the share of hidden neurons that pass a gradient
    work = density.calibrate(plan.workloads("fc-10%", quick=True)[0])
    network = _network(work, libraries.load(Settings("ours")))
    shares = []
    for m in network.model.modules():
        if isinstance(m, bs.LIF):
            # the gradient of an input current is then g h
            m.temporal_gradient = False
            m.reset_gradient = 0.0
            m.register_full_backward_hook(
                lambda m, gx, g: shares.append((gx[0] != 0).double().mean().item())
            )
    network.computed()
    assert shares == pytest.approx([0.1, 0.1], abs=0.003)


@pytest.mark.parametrize("name", [name for name in WORK if not name.startswith("stream")])
@pytest.mark.parametrize(
    "wrong",
    [{"detached": True}, {"gain": 0.51}, {"surrogate": "superspike"}],
    ids=["detached", "gain", "surrogate"],
)
def test_the_gate_refuses_another_neuron(name, wrong):
    work = WORK[name].small()
    exact, other = (gate.reference(work, neuron) for neuron in (Neuron(), Neuron(**wrong)))
    assert gate._worst(other["gradients"], exact["gradients"]) > 2 * gate.CLOSE
    assert gate._worst(exact["gradients"], exact["gradients"]) == 0


@pytest.mark.parametrize("kind", ["neuron", "fc-10%", "vgg", "resnet"])
def test_the_gates_reference_agrees_with_the_reference_backend(kind):
    work = WORK[kind].small()
    width = work.widths[0] if work.widths else 1.0
    neuron = Neuron(surrogate="rectangle" if work.widths else "atan", width=width)
    expected = gate.reference(work, neuron)
    if kind == "neuron":
        x, g = (t.double() for t in networks.data(work))
        x.requires_grad_()
        hard = {"v_reset": 0.0, "decay_input": True, "reset_gradient": 1.0}
        out = bs.lif(x, backend="reference", **hard).spikes
        out.backward(g)
        assert torch.equal(out, expected["spikes"])
        found = [x.grad]
    else:
        network = _network(work, libraries.load(Settings("ours", backend="reference")))
        network.model.double()
        network.x = network.x.double()
        found = network.computed()["gradients"]
    assert gate._worst(found, expected["gradients"]) < 1e-9


def _network(work: Workload, lib) -> Network:
    return Network(work, lib, Settings("ours"), networks.data(work))


@pytest.mark.parametrize("name", ["fc", "vgg", "resnet"])
def test_every_configuration_of_ours_passes_the_gate(name, tmp_path):
    work = WORK[name]
    for implementation in plan.implementations(work, only=["backspike"]):
        if not implementation.limit:
            assert (
                gate.judge(_Here(implementation.settings), implementation, work, tmp_path).reason
                == ""
            )


@pytest.mark.parametrize("name", ["stream", "stream-linear"])
def test_streams_pass_the_gate_with_spikes_and_another_neuron_does_not(name, tmp_path):
    work = WORK[name]
    work = replace(work, shifts=(0.8,) * 3)  # as calibrated
    spikes = gate.reference(work.small(), Neuron())["spikes"]
    assert 0.1 < spikes.mean().item() < 0.9
    for implementation in plan.implementations(work):
        if not implementation.limit:
            here = _Here(implementation.settings)
            assert gate.judge(here, implementation, work, tmp_path).reason == ""
    other = gate.reference(work.small(), Neuron(gain=0.6))["spikes"]
    assert (other != spikes).double().mean() > 0.01


def test_the_limit_of_a_stream_counts_forward_products_and_rows_at_events():
    work = replace(WORK["stream-linear"], T=3, layout=(40, 20, 10), share=1.0, shifts=(9.0, 9.0))
    facts = limits.Products(work, Settings("limits", part="products")).facts()
    assert facts["flop"] == 2 * 3 * (40 * 20 + 20 * 10)
    assert facts["inputs"] == [1.0, 1.0]  # every neuron spikes at every timestep
    assert facts["moved"] == 4 * 3 * (40 * 20 + 20 * 10 + 5 * (20 + 10))


class _Here:
    """A worker without a process."""

    def __init__(self, settings):
        from backspike.bench.worker.loop import Worker

        self.worker = Worker()
        self.worker.settings, self.worker.lib = settings, libraries.load(settings)

    def ask(self, do, **request):
        return json.loads(json.dumps(getattr(self.worker, do)(**request)))


def test_all_libraries_get_the_same_weights_from_the_seed():
    work = WORK["resnet"].small()
    ours, plain = (
        networks.build(work, libraries.load(Settings(name))) for name in ("ours", "plain")
    )
    other = networks.build(replace(work, seed=5), libraries.load(Settings("plain")))
    pairs = list(
        zip(networks.weights(ours), networks.weights(plain), networks.weights(other), strict=True)
    )
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs if a.dim() > 1)


def test_the_full_resnet_is_resnet18():
    """11.17 million parameters, 555 million multiplications per image (3x3 stem, ten classes)."""
    work, settings = replace(WORK["resnet"], T=1, B=1), Settings("limits")
    layers = limits._layers(work, settings)
    outputs = [
        shape[2] // m.stride[0] if isinstance(m, torch.nn.Conv2d) else 1 for m, shape, _ in layers
    ]
    assert sum(size**2 * m.weight.numel() for size, (m, *_) in zip(outputs, layers)) == 555_422_720
    norms = 2 * (64 * 5 + 128 * 5 + 256 * 5 + 512 * 5)
    assert sum(m.weight.numel() for m, *_ in layers) + 10 + norms == 11_173_962


def test_the_limit_counts_every_product_once():
    """Output, weight gradient and, except in the first layer, input gradient; static input once."""
    work = Workload("fc", "fc", T=3, B=5, layout=(7, 11, 10), static=True)
    products = limits.Products(work, Settings("limits", part="products"))
    assert products.flop == 2 * (2 * 5 * 7 * 11 + 3 * 3 * 5 * 11 * 10)
    work = Workload("vgg", "vgg", T=2, B=3, layout=(5, "P"), size=8)
    convolution, linear = 2 * 2 * 6 * 64 * 5 * 27, 2 * 3 * 6 * 5 * 16 * 10
    assert limits.Products(work, Settings("limits", part="products")).flop == convolution + linear
    assert limits.Copy(WORK["neuron"], Settings("limits")).facts()["bytes"] == 16 * 4 * 2**22


def test_the_limit_counts_the_bytes_moved():
    """A convolution 3 -> 5 of 6 images 8x8 (1152 inputs, 1920 outputs), then a linear layer
    80 -> 10 (480 inputs, 60 outputs), in float32.
    """
    work = Workload("vgg", "vgg", T=2, B=3, layout=(5, "P"), size=8)
    moved = 4 * (2 * (1152 + 1920) + 8 * 1920 + 3 * (480 + 60) + 8 * 60)
    assert limits.Products(work, Settings("limits", part="products")).facts()["moved"] == moved
    rows = [
        _row("copy", 0.5, {"bytes": 1000}, part="copy"),
        _row("products, fp32", 0.1, {"flop": 1, "moved": 8000}, part="products"),
    ]
    assert results.Outcome(work, rows).floor(False) == (8000, 4.0)


def _row(name, seconds, facts, **settings):
    implementation = plan.Implementation(name, Settings("limits", **settings))
    return results.Row(implementation, rounds=[[seconds]], facts=facts)


def test_the_implementations_on_a_gpu():
    work = {w.name: w for w in plan.GPU_WORKLOADS}
    rows = {
        r.name: r.settings
        for r in plan.implementations(work["vggsnn"], peers=["spikingjelly"], device="cuda")
    }
    assert all(settings.device == "cuda" for settings in rows.values())
    assert not [name for name in rows if "heap" in name]
    assert rows["backspike, bf16, CUDA graph"].graph
    assert rows["SpikingJelly, bf16, Triton"] == Settings(
        "spikingjelly", bfloat16=True, backend="triton", device="cuda"
    )
    assert not [
        r
        for r in plan.implementations(work["vggsnn"], peers=["spikingjelly"])
        if "Triton" in r.name
    ]
    assert [w.name for w in plan.workloads("all", False, "cuda")] == list(work)


# VGGSNN: convolutions 9 (2 64 + 64 128 + 128 256 + 256 256 + 256 512 + 3 512 512),
# norms 2 (64 + 128 + 2 256 + 4 512), linear layer 10 (9 512 + 1); ResNet18 for ImageNet: 11,689,512
PARAMETERS = {
    "vggsnn": 9 * (128 + 8192 + 32768 + 65536 + 131072 + 786432) + 2 * 2752 + 46090,
    "resnet-224px": 11_689_512,
}


@pytest.mark.parametrize(
    ("name", "outputs"), [("vggsnn", (6, 4, 10)), ("resnet-224px", (4, 4, 1000))]
)
def test_the_gpu_networks_have_the_published_sizes(name, outputs):
    work = next(w for w in plan.GPU_WORKLOADS if w.name == name)
    assert (
        sum(p.numel() for p in networks.build(work, libraries.load(Settings("plain"))).parameters())
        == PARAMETERS[name]
    )
    x, _ = networks.data(work.small())
    assert networks.build(work.small(), libraries.load(Settings("ours")))(x).shape == outputs


def test_the_peak_is_the_memory_allocated():
    script = """
import sys
from backspike.bench.worker.memory import Peak
import torch
torch.ones(8).sum()
peak = Peak()
a = torch.ones(25_000_000); del a
b = torch.ones(1_000_000)
print(peak.extra(), peak.how)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    extra, how = done.stdout.split()
    assert 98e6 < int(extra) < 112e6
    assert how in ("VmHWM", "ru_maxrss")


def _outcome(**medians: float) -> results.Outcome:
    """An outcome with made-up times in seconds."""
    rows = []
    for implementation in plan.implementations(WORK["vgg"], peers=plan.PEERS):
        name = implementation.name.replace(", ", "_").replace(" ", "_")
        row = results.Row(
            implementation,
            rounds=[[medians.get(name, 1.0)] * 3],
            memory={"bytes": 8e6, "how": "VmHWM"},
        )
        row.facts = {"bytes": 2e9, "flop": 3e9, "spikes": [0.1]}
        rows.append(row)
    return results.Outcome(WORK["vgg"], rows)


def test_ratios_and_shares_use_the_right_rows():
    made = _outcome(
        backspike=0.25,
        SpikingJelly=2.0,
        products_fp32=0.2,
        copy=0.1,
        **{"products_fp32_channels-last": 0.1},
    )
    rows = {r.name: r for r in made.rows}
    assert page.against(rows["backspike"], rows["SpikingJelly"]) == "8.00x, 1.00x"
    assert made.share(rows["backspike"]) == pytest.approx(0.4)  # of the faster layout
    assert made.share(rows["backspike, bf16"]) == pytest.approx(
        1.0
    )  # of the products in its own precision
    assert made.speeds()["copy"] == pytest.approx(20.0)
    assert [r.name for r in made.against(5)] == [
        "SpikingJelly",
        "SpikingJelly, bf16",
        "SpikingJelly, bf16, heap kept",
        "SpikingJelly, bf16, lean heap",
        "plain loop",
    ]
    assert len({len(page.cells(made, row)) for row in made.ranked()} | {len(page.head(made))}) == 1


def test_speed_and_memory_ratios_have_the_same_format():
    made = _outcome(backspike=0.25, SpikingJelly=0.1925)
    rows = {r.name: r for r in made.rows}
    rows["backspike"].memory["bytes"] = 10.32e6
    rows["backspike, 8 bit"].memory["bytes"] = 0.448e6
    ratio = [page.against(rows[name], rows["SpikingJelly"]) for name in list(rows)[:3]]
    assert ratio[0] == "0.77x, 1.29x"
    assert ratio[2] == "0.19x, 0.056x"
    cells = page.glance(_bench(made)).lines()[1]
    assert all(cell.endswith("x") for cell in (*cells[2:5], *cells[6:]))


def _bench(*outcomes):
    return results.Bench({}, {}, rounds=1, quick=True, outcomes=list(outcomes))


SERVE = "from backspike.system.workers import serve; serve(lambda do, request: {})"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("raise SystemExit('no such thing')", "no such thing"),
        (SERVE.format("{'error': 'ValueError: wrong value'}"), "wrong value"),
    ],
)
def test_the_error_says_why_a_worker_died(monkeypatch, text, message):
    monkeypatch.setattr(workers, "_START", text.replace("{", "{{").replace("}", "}}"))
    worker = workers.Worker(plan.implementations(WORK["neuron"])[0], None)
    try:
        with pytest.raises(workers.WorkerFailed, match=message):
            worker.ask("set_up", work={}, settings={}, threads=1)
    finally:
        worker.end()
    assert worker.process.returncode is not None


@pytest.mark.slow
def test_one_row_may_fail_without_the_others(monkeypatch):
    """The gate expects a wrong neuron of the plain loop, and one of our workers is killed."""
    ask, compare = workers.Worker.ask, gate._exact

    def dies(self, do, **request):
        self.settings = request.get("settings") or self.settings
        if do == "run" and self.settings["memory"] == "8bit" and self.settings["heap"] == "kept":
            os.kill(self.process.pid, signal.SIGKILL)
        return ask(self, do, **request)

    def misled(worker, settings, *rest):
        monkeypatch.setattr(
            gate,
            "Neuron",
            (lambda **_: Neuron(detached=True)) if settings.library == "plain" else Neuron,
        )
        return compare(worker, settings, *rest)

    monkeypatch.setattr(workers.Worker, "ask", dies)
    monkeypatch.setattr(gate, "_exact", misled)
    events = []
    result = bench.run(
        "neuron",
        quick=True,
        rounds=2,
        threads=1,
        only=["plain", "8 bit", "eager"],
        listen=events.append,
    )
    killed, eager, _, plain = result.outcomes[0].ranked()
    assert "signal 9" in killed.failed
    assert "float64" in plain.failed
    assert plain.rounds == []
    assert eager.failed == ""
    assert len(eager.rounds) == 2
    assert {e["name"] for e in events if e["event"] == "failed"} == {
        "backspike, 8 bit",
        "plain loop",
    }
    assert f"failed: {plain.failed}" in page.markdown(result, "backspike bench")
    assert math.isnan(result.outcomes[0].share(plain))


def test_ctrl_c_ends_all_workers(monkeypatch):
    started = []
    start = workers.Worker.__init__

    def notes(self, *arguments):
        start(self, *arguments)
        started.append(self)

    def interrupted(event):
        if event["event"] == "ready":
            raise KeyboardInterrupt

    monkeypatch.setattr(workers.Worker, "__init__", notes)
    with pytest.raises(KeyboardInterrupt):
        bench.run("neuron", quick=True, rounds=1, threads=1, only=["plain"], listen=interrupted)
    assert [w.process.poll() is not None for w in started] == [True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["cnn"],
            "choose from neuron, fc, fc-10%, vgg, vgg-10%, vgg-20%, resnet, resnet-10%",
        ),
        (["--rounds", "0"], "at least 1"),
        (["--precision", "half"], "float32, bfloat16"),
        (["--device", "tpu"], "use --device cpu, or cuda"),
        (["neuron", "--only", "nothing"], "plain loop"),
        (["--peer-python", "/no/such/python"], "such as peers/bin/python"),
        (["--peer-python", sys.executable], "none of SpikingJelly"),
    ],
)
def test_a_wrong_command_gets_a_one_line_message(capsys, words, message):
    assert cli.main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_libraries_do_not_get_the_variables_our_command_line_sets(monkeypatch):
    for name, value in machine.QUIET_THREADS.items():
        monkeypatch.setenv(name, value)
    peer = plan.Implementation("SpikingJelly", Settings("spikingjelly"))
    ours = plan.Implementation("backspike", Settings("ours"))
    assert not set(machine.QUIET_THREADS) & set(workers._environment(peer))
    assert set(machine.QUIET_THREADS) <= set(workers._environment(ours))


def test_a_worker_runs_without_backspike(monkeypatch):
    """Its folder is loaded as a top-level package."""
    blocked = "import sys; sys.modules['backspike'] = None\n" + workers._START
    monkeypatch.setattr(workers, "_START", blocked)
    with workers.Worker(plan.Implementation("plain loop", Settings("plain")), None) as worker:
        small, settings = vars(WORK["neuron"].small()), vars(Settings("plain", heap="kept"))
        answer = worker.ask("set_up", work=small, settings=settings, threads=1)
    assert len(answer["seconds"]) == 3
    assert answer["heap"] == sys.platform.startswith("linux")


@pytest.fixture
def race(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("cifar_race")


def _race_settings(race, name, file):
    y = torch.arange(640) % 10
    x = torch.zeros(640, 3, 32, 32, dtype=torch.uint8)
    for label in range(10):
        x[y == label, :, :, 3 * label : 3 * label + 4] = 255
    torch.save({"train_x": x, "train_y": y, "test_x": x[:200], "test_y": y[:200]}, file)
    recipe = bs.recipes.get(name).replace(
        {"model.layout": "4-P-8-P", "precision": "float32", "batch_size": 128}
    )
    return race.Settings(str(file), recipe.to_dict(), threads=1, seconds=2.0)


def test_what_a_network_draws_changes_no_batch_of_the_race(race, tmp_path):
    settings = _race_settings(race, "cifar10-30min", tmp_path / "data.pt")
    first, second = (race.Training("backspike", settings) for _ in range(2))
    for k in range(7):  # beyond an epoch
        torch.rand(k)
        (x, y), (same_x, same_y) = first._next_batch(), second._next_batch()
        assert torch.equal(y, same_y)
        assert torch.equal(x, same_x)


@pytest.mark.parametrize("name", ["cifar10-small", "cifar10-30min"])
def test_backspike_trains_for_its_time_in_the_race(name, race, tmp_path):
    settings = _race_settings(race, name, tmp_path / "data.pt")
    slices = race.run_race({"backspike": sys.executable}, settings, slice=1.0)["backspike"]
    seconds = [s["seconds"] for s in slices]
    assert seconds == sorted(seconds)
    assert seconds[-1] >= 2 > max([0.0, *seconds[:-1]])
    assert ["accuracy" in s for s in slices] == [False] * (len(slices) - 1) + [True]
    assert slices[-1]["images"] >= 128
    assert f"{seconds[-1]:.0f} s, " in race.describe(slices)


def test_the_axes_of_a_long_chart_fill_it():
    """The margins stay as wide, in inches, as those of a short chart."""
    from matplotlib.figure import Figure

    rows = _outcome(backspike=0.25, SpikingJelly=2.0).ranked()
    margins = []
    for shown in (rows[:3], rows):
        figure = Figure(figsize=(5, 3.1))
        ax = figure.add_axes((0.12, 0.17, 0.865, 0.8))
        page._draw_bars(ax, shown, [1.0] * len(shown), [])
        height, box = figure.get_size_inches()[1], ax.get_position()
        margins.append((box.y0 * height, (1 - box.y1) * height))
        tall = height
    assert tall > 6
    assert margins[1] == pytest.approx(margins[0])


def test_one_round_is_singular():
    machine = dict.fromkeys(("cpu", "cores", "threads", "memory_gb", "capability", "system"), 1)
    bench = _bench(_outcome(backspike=0.25))
    bench.machine = {**machine, "python": "3", "torch": "2"}
    assert "; 1 round." in page.about(bench)[0]
