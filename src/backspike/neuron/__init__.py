"""Spiking neurons (LIF, IF, PLIF, CLIF, CubaLIF), the integrator, recurrence, streaming, hooks."""
