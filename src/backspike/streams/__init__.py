"""Endless streams: a network compiled once, then run timestep by timestep."""
