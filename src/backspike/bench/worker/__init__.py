"""What runs in a process of its own for each implementation that `backspike bench` compares.

It needs torch and the standard library; backspike and its peers are imported only by the file in `libraries/` that bears their
name. So the Python of an environment without backspike can run it, under whatever name the package is loaded.
"""
