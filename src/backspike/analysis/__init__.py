"""What a network does (activity, operations, energy, early exit) and why one does not learn."""
