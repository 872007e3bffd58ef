"""Layers around neurons: over time, norms, synapses, fused blocks, sequences."""
