"""Studies: recipe variants (arms) over several seeds, compared by paired tests, with figures."""
