"""Names are built in one way and read back the same."""

from __future__ import annotations

import pytest

from mlip_job.errors import ConfigError
from mlip_job.paths import FamilyKeys, generation_name, parse_generation_name


@pytest.mark.parametrize(
    ("number", "name"), [(1, "gen_01"), (4, "gen_04"), (99, "gen_99"), (100, "gen_100")]
)
def test_generation_names_have_two_digits_or_more(number: int, name: str) -> None:
    assert generation_name(number) == name
    assert parse_generation_name(name) == number


def test_other_names_and_numbers_are_no_generations() -> None:
    """A stray folder in the store is not taken for a generation."""
    for name in ("gen_4", "gen_00", "gen_004", "gen_", "GEN_04", "gen_04 ", "x"):
        assert parse_generation_name(name) is None
    for number in (0, -1):
        with pytest.raises(ConfigError, match=f"generation {number} is not possible"):
            generation_name(number)


def test_store_keys_follow_the_published_layout() -> None:
    """The layout of docs/store.md, which other tools may rely on."""
    keys = FamilyKeys("cu-ni")
    assert keys.manifest(4) == "cu-ni/generations/gen_04/manifest.json"
    assert keys.attempt(4, "a", "train.log") == "cu-ni/generations/gen_04/attempts/a/train.log"
    assert keys.dataset("0123", "train.xyz") == "cu-ni/datasets/0123/train.xyz"
    assert keys.potential(4, "yace") == "cu-ni/potentials/gen_04.yace"
    assert keys.latest == "cu-ni/latest.json"
