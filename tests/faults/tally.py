"""What the fault suite did, for the end of its output."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Tally:
    """Counts over all tests of a session.

    Attributes
    ----------
    kill_points
        How often a job was killed or stopped.
    iterations_lost, iterations_done
        Training that had to be done again, and all that was done.
    publishes, duplicates
        Generations that were published, and how many of them more than once.
    races
        Jobs that were started at once for one generation.
    s3_faults
        Requests to an S3 server that were failed on purpose.
    """

    kill_points: int = 0
    iterations_lost: int = 0
    iterations_done: int = 0
    publishes: int = 0
    duplicates: int = 0
    races: int = 0
    s3_faults: int = 0

    def count_end(self, texts: list[str], iterations: int) -> None:
        """Count one generation that was brought to its end, by what its jobs said."""
        said = sum(text.count("published gen_01 in ") for text in texts)
        self.publishes += 1
        self.duplicates += max(0, said - 1)
        self.iterations_done += iterations

    def __str__(self) -> str:
        """Return the summary line."""
        return (
            f"{self.kill_points} kill points, {self.iterations_lost} of {self.iterations_done} "
            f"iterations lost, {self.races} jobs raced, {self.s3_faults} S3 requests failed, "
            f"{self.publishes} publishes, duplicates = {self.duplicates}"
        )
