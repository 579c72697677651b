"""Runtime of a run: versions, cores, processes, signals."""
