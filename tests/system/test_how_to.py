"""The code of the how-to pages, of the first page and of the cheat sheet runs."""

import os
import re
import stat
import subprocess
import sys

import pytest
from backspike_site.public_names import public_names
from helpers.paths import ROOT
from matplotlib import pyplot


def text_of(page):
    return (ROOT / "docs" / page).read_text("utf-8")


def run(page, language="python"):
    """The variables after all blocks of a page."""
    pyplot.switch_backend("agg")
    variables = {"__name__": "__main__"}
    for code in re.findall(rf"```{language}\n(.*?)```", text_of(page), re.S):
        exec(compile(code, page, "exec"), variables)
    pyplot.close("all")
    return variables


@pytest.fixture(autouse=True)
def in_a_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_the_first_page_trains():
    assert run("index.md")["loss"].item() < 1


def test_the_cheat_sheet_runs():
    assert run("moving/cheat-sheet.md")["logits"].shape == (64, 10)


def test_names_on_the_cheat_sheet_exist():
    named = set(re.findall(r"\bbs\.([\w.]+)", text_of("moving/cheat-sheet.md")))
    assert len(named) > 30
    assert named - set(public_names()) == set()


def test_a_surrogate_of_ones_own(capsys):
    run("how-to/own-surrogate.md")
    shown = capsys.readouterr().out
    assert "fits: True" in shown
    assert re.search(r"LIF +eager", shown)


def test_fine_tuning(capsys):
    variables = run("how-to/fine-tune.md")
    assert min(map(float, capsys.readouterr().out.split()[-2:])) > 0.9
    learned = [p for group in variables["optimizer"].param_groups for p in group["params"]]
    assert 0 < len(learned) < len(list(variables["model"].parameters()))


def test_many_seeds(capsys):
    run("how-to/many-seeds.md")
    shown = capsys.readouterr().out
    assert re.search(r"^\| mask \| 3 \|", shown, re.M)
    assert "takes at least 6 seeds" in shown


def test_memory(capsys):
    run("how-to/memory.md")
    assert capsys.readouterr().out == "True\n"


def test_every_section_of_a_report_is_explained():
    page = run("how-to/read-a-report.md")["page"]
    sections = set(re.findall(r'<h2 id="[^"]*">([^<]+)', page))
    explained = re.findall(r"^\| ([^|]+?) \|", text_of("how-to/read-a-report.md"), re.M)[1:]
    assert sections == set(explained)


def test_the_job_of_a_cluster_starts_and_continues(tmp_path):
    """A second submission resumes, and ends at once as the run is complete."""
    (script,) = re.findall(r"```bash\n(.*?)```", text_of("how-to/cluster.md"), re.S)
    (tmp_path / "seeds.sbatch").write_text(script)
    program = tmp_path / "bin/backspike"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m backspike "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "SLURM_ARRAY_TASK_ID": "3"}
    command = ["bash", "seeds.sbatch", "--epochs", "1", "--limit", "100"]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    log = (tmp_path / "runs/digits-seed-3/log.jsonl").read_text()
    assert log.count('"event": "epoch"') == 1
    assert '"seed": 3' in (tmp_path / "runs/digits-seed-3/recipe.json").read_text()
