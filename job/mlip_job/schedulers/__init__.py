"""Ways to run ``mlip-job run`` on a machine with a GPU."""
