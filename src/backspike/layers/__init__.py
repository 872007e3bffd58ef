"""Layers around neurons: `OverTime`, norms, synaptic layers, fused blocks, `Sequential`."""
