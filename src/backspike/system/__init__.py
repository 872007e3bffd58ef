"""Under everything: processes, memory, files, the machine and events."""
