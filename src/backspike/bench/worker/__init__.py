"""The code that runs in the process of each implementation that `backspike bench` compares.

It needs only torch and the standard library. Each library, including backspike, is imported only by
its own file in `libraries/`, so a Python without backspike can run this package, under any name.
"""
