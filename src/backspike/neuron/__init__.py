"""Spiking neurons (LIF and its kin, PSN), the integrator, recurrence, streaming, hooks."""
