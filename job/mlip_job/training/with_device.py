"""Run a Python program if TensorFlow finds a device of a type.

It runs in the trainer's environment and imports nothing of this package::

    python -P with_device.py GPU /path/to/pacemaker --no-predict input.yaml
"""

import os
import runpy
import sys

NO_DEVICE = 71
"""Exit code without a device: that of `GpuRequiredError`."""


def main() -> None:
    """Check for the device, then run the program."""
    kind, program, *arguments = sys.argv[1:]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as pacemaker sets it before its own import
    import tensorflow as tf  # noqa: PLC0415

    if not tf.config.list_physical_devices(kind):
        sys.exit(NO_DEVICE)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
