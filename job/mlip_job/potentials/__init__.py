"""Published potentials, ready for use in Python: found, fetched, checked, cached, loaded."""
