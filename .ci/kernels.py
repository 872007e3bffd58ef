"""Prints whether the C kernels were compiled; `make install` runs it at its end."""

from backspike.kernel.cpu import library

problem = library.missing()
print(f"warning: {problem}" if problem else f"C kernels compiled: {', '.join(library.levels())}")
