"""Run a Python program in this process, but only where TensorFlow sees a device of a kind.

::

    python -P on_device.py GPU /path/to/pacemaker --no-predict input.yaml

It is run as a file by the trainer's Python, and imports nothing of this package.
"""

from __future__ import annotations

import os
import runpy
import sys

NO_DEVICE = 71
"""The exit code where there is none: that of `GpuRequiredError`."""


def main() -> None:
    """Look for the device, then become the program."""
    kind, program, *arguments = sys.argv[1:]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as pacemaker sets it before its own import
    import tensorflow as tf  # noqa: PLC0415

    if not tf.config.list_physical_devices(kind):
        sys.exit(NO_DEVICE)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
