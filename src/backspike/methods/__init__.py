"""Training methods that hook into a model (PDA, SGS, masked weight gradients), and Muon."""
