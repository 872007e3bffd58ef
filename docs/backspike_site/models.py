"""The table of models: ours from their run folders, the papers' from the list of recipes."""

import hashlib
import json
import re
import statistics
from pathlib import Path
from typing import Any

from backspike.models import shipped as packaged
from backspike.recipes import GRADES, NAMES
from backspike.system.files import read_json

from .markdown import table

RUNS = Path(__file__).parents[1] / "results/sequence-accuracy.jsonl"
# of a model card, which has the accuracy of every seed and of all
SEED = re.compile(r"^\| (\d+) \| [\d.]+ % \|", re.M)
OVER_SEEDS = re.compile(r"the test accuracy is ([\d.]+) % ± ([\d.]+) %")
LAYOUT = re.compile(r"layout='([^']+)'|hidden=\(([\d, ]+)\)")


def rows() -> dict[str, list[dict[str, Any]]]:
    """All that the page shows, for programs; accuracies are in percent."""
    folders = packaged.folders().items()
    return {
        "shipped": [_shipped(name, folder) for name, folder in folders],
        "runs": _runs(),
        "papers": _papers(),
    }


def shipped(folder: Path) -> str:
    """The table of the networks in the package. Writes models.json for the page's link."""
    made = rows()
    (folder / "models.json").write_text(json.dumps(made, indent=1, ensure_ascii=False))
    head = ["name", "data", "network", "T", "over seeds", "shipped", "seeds", "training"]
    lines = [
        [
            f"`{row['name']}`",
            " ".join(filter(None, [row["data"], row["note"]])),
            f"{_linked(row['network'])} {row['layout']}",
            row["T"],
            f"{row['mean']:.2f} ± {row['std']:.2f} %",
            f"{row['accuracy']:.2f} %",
            ", ".join(map(str, row["seeds"])),
            f"{row['seconds']:.0f} s",
        ]
        for row in made["shipped"]
    ]
    how = [
        f"* `{r['name']}`: `{r['command']}`; {r['machine']}, {r['threads']} thread(s), "
        f"torch {r['torch']}; sha256 of `model.safetensors`: `{r['sha256']}`"
        for r in made["shipped"]
    ]
    link = "The same for programs: [models.json](/_made/models.json)."
    return "\n".join([table(head, lines, "lllrrrrr"), "", *how, "", link])


def runs(folder: Path) -> str:
    """The table of recipes that were run with several seeds."""
    lines = [
        [
            f"`{r['recipe']}`",
            r["network"],
            f"{r['mean']:.1f} ± {r['std']:.1f} %",
            ", ".join(map(str, r["seeds"])),
            r["epochs"],
        ]
        for r in _runs()
    ]
    text = "The command, for each seed: `backspike train RECIPE --epochs N --seed SEED`."
    head = ["recipe", "network", "test accuracy", "seeds", "epochs"]
    return f"{table(head, lines, 'llrrr')}\n\n{text}"


def papers(folder: Path) -> str:
    """The table of what the papers report."""
    lines = [
        [
            f"`{r['recipe']}`",
            r["data"],
            _linked(r["network"]),
            r["T"],
            _percent(r["accuracy"], r["std"]),
            r["source"],
            r["evidence"],
        ]
        for r in _papers()
    ]
    head = ["recipe", "data", "network", "T", "theirs", "paper", "known from"]
    return table(head, lines, "lllrrll")


def _shipped(name: str, folder: Path) -> dict[str, Any]:
    recipe = read_json((folder / "recipe.json").read_bytes())
    env = read_json((folder / "env.json").read_bytes())
    done = read_json((folder / "log.jsonl").read_bytes().splitlines()[-1])
    card = (folder / "README.md").read_text("utf-8")
    ((mean, std),) = OVER_SEEDS.findall(card)
    (layout,) = map("".join, LAYOUT.findall(recipe["fields"]["model"]))
    return {
        "name": name,
        "data": recipe["fields"]["data"],
        "note": f"({env['data_note']})" if env["data_note"] else "",
        "network": recipe["fields"]["model"],
        "layout": layout,
        "T": recipe["fields"]["T"],
        "accuracy": 100 * done["test_accuracy"],
        "mean": float(mean),
        "std": float(std),
        "seeds": sorted(map(int, SEED.findall(card))),
        "seconds": done["seconds"],
        "machine": env["cpu"],
        "threads": env["threads"],
        "torch": env["torch"],
        "command": env["command"],
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }


def _runs() -> list[dict[str, Any]]:
    """The spiking networks of `benchmarks/sequence_accuracy.py`, a row per recipe and length."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in RUNS.read_text("utf-8").splitlines():
        run = json.loads(line)
        if run["network"] == "spiking" and not run["samples"]:
            groups.setdefault((run["recipe"], run["epochs"]), []).append(run)
    return [
        {
            "recipe": recipe,
            "network": some[0]["about"],
            "mean": 100 * statistics.mean(run["test_accuracy"] for run in some),
            "std": 100 * statistics.stdev(run["test_accuracy"] for run in some),
            "seeds": [run["seed"] for run in some],
            "epochs": epochs,
        }
        for (recipe, epochs), some in groups.items()
        if len(some) > 1
    ]


def _papers() -> list[dict[str, Any]]:
    found = []
    for name, entry in NAMES.items():
        if entry.reported:
            recipe, theirs = entry.make(), entry.reported
            found.append(
                {
                    "recipe": name,
                    "data": recipe.data,
                    "network": repr(recipe.model),
                    "T": recipe.T,
                    "accuracy": theirs.accuracy,
                    "std": theirs.spread,
                    "source": theirs.source,
                    "evidence": GRADES[theirs.grade],
                }
            )
    return found


def _linked(network: str) -> str:
    name = network.partition("(")[0]
    return f"[{name}](../gallery/networks.md#{name.lower()})"


def _percent(accuracy: float, std: float | None) -> str:
    return f"{accuracy:.2f} %" if std is None else f"{accuracy:.2f} ± {std:.2f} %"
