"""Where the checkout and its data lie."""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
DATA = Path(os.environ.get("BACKSPIKE_DATA") or ROOT.parent / "shared" / "data")
