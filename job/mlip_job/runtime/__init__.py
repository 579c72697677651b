"""The machine that a run has: versions, cores, processes, signals."""
