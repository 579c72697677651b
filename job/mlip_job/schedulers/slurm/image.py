"""The hash of the image, taken at submission: a job does not read the whole image on its node.

::

    <work>/image-1a2b3c4d.sha256      <sha256> <size> <time of the last change>

The script compares size and time. It takes the hash itself only where they differ, or where there
is no such record.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.disk import sha256_of
from mlip_job.schedulers.records import write_whole

if TYPE_CHECKING:
    from mlip_job.config import JobConfig

_WORTH_A_NOTE = 256 << 20  # bytes: a second or so

_log = logging.getLogger(__name__)


def image_record(config: JobConfig) -> Path:
    """Return where the hash of the configured image is kept."""
    key = hashlib.sha256(str(config.submit.slurm.image).encode()).hexdigest()[:8]
    return Path(config.work_dir) / f"image-{key}.sha256"


def record_image(config: JobConfig) -> None:
    """Record the hash of the configured image, if it is a file that has changed since then.

    Where that is not possible, the job takes the hash itself.
    """
    image, record = Path(config.submit.slurm.image or ""), image_record(config)
    with suppress(OSError):
        if not image.is_file():
            return
        before = _about(image)
        if record.is_file() and record.read_text(encoding="ascii").split()[1:] == before.split():
            return
        if image.stat().st_size > _WORTH_A_NOTE:
            _log.warning("note: taking the hash of %s; this is done once", image)
        sha256 = sha256_of(image)
        if _about(image) == before:  # it may be copied there just now
            write_whole(record, f"{sha256} {before}\n")


def _about(path: Path) -> str:
    """Return size and time of the last change, as ``stat -c '%s %.9Y'`` does."""
    about = path.stat()
    seconds, nanoseconds = divmod(about.st_mtime_ns, 10**9)
    return f"{about.st_size} {seconds}.{nanoseconds:09d}"
