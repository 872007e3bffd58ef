"""Training methods that hook into a model: PDA, SGS and masked weight gradients."""
