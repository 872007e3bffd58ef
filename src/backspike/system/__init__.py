"""The lowest layer: worker processes, ranks, memory, files, tables, events and the machine."""
