"""Studies: arms of recipes over seeds, compared with paired tests, as a page with figures."""
