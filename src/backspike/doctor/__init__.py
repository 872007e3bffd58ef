"""Why does it not learn? `examine` measures a network and names the problem; `page` shows it."""
