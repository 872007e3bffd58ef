"""What a trained network does: activity, operations, energy, early exit, and what is wrong with one that does not learn."""
