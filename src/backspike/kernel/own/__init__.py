"""Neurons with equations of their own, compiled.

trace.py records what a neuron's methods do with one timestep as a `Graph`, rules.py differentiates
it, c.py writes it as a C function for each direction, build.py compiles that and run.py calls it.
"""
