"""``python -m mlip_job``: the command line, where no program of its name is on PATH."""

from mlip_job.cli.main import main

main()
