"""Runs the code of a page of docs/moving, for the peers' python: `beside_page.py PAGE`.

The last line of its output is JSON: the numbers of spikes of both libraries, of elements that
differ, and of elements.
"""

import json
import re
import sys
from pathlib import Path

variables = {}
for code in re.findall(r"```python\n(.*?)```", Path(sys.argv[1]).read_text("utf-8"), re.S):
    exec(code, variables)
theirs, ours = (variables[name].detach().double() for name in ("theirs", "ours"))
assert theirs.shape == ours.shape, (theirs.shape, ours.shape)
found = {"theirs": theirs.sum(), "ours": ours.sum(), "differ": (theirs != ours).sum()}
print(json.dumps({name: int(value) for name, value in found.items()} | {"of": ours.numel()}))
