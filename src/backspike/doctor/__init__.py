"""Why does a network not learn? `examine` measures it and names problems; `page` shows them."""
