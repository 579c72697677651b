"""The split is exact, deterministic, stable and keeps together what belongs together."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlip_job.dataset.index import common_test_rows, index_text, write_index
from mlip_job.dataset.split import Inheritance, Split, SplitItem, split_rows
from mlip_job.errors import DataError

if TYPE_CHECKING:
    import random
    from pathlib import Path


def fingerprint_of(number: int) -> str:
    """Return a fingerprint as uneven as real ones."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def singles(count: int, *, start: int = 0) -> list[SplitItem]:
    """Return rows that all differ and belong to no group."""
    return [SplitItem(row_id=n + 1, fingerprint=fingerprint_of(n)) for n in range(start, count)]


def sides_by_row(items: list[SplitItem], split: Split) -> dict[int, str]:
    """Map row ids to sides."""
    return {item.row_id: side for item, side in zip(items, split.sides, strict=True)}


fractions = st.floats(min_value=0.05, max_value=0.95)
seeds = st.integers(min_value=0, max_value=2**32)


@st.composite
def related_items(draw: st.DrawFn) -> list[SplitItem]:
    """Draw rows of which some share a group, some a structure, and some both."""
    count = draw(st.integers(min_value=12, max_value=60))
    structures = st.integers(min_value=0, max_value=2 * count)
    groups = st.one_of(st.none(), st.integers(min_value=0, max_value=count).map(str))
    return [
        SplitItem(row_id=n + 1, fingerprint=fingerprint_of(draw(structures)), group=draw(groups))
        for n in range(count)
    ]


def try_split(items: list[SplitItem], fraction: float, seed: int) -> Split | None:
    """Split, or return None where relations leave a side empty: that refusal is tested apart."""
    try:
        return split_rows(items, fraction=fraction, seed=seed)
    except DataError:
        return None


def test_hundred_structures_at_a_tenth() -> None:
    """100 structures at 0.1 are exactly 90 and 10, none on both sides."""
    items = singles(100)
    sides = sides_by_row(items, split_rows(items, fraction=0.1, seed=42))
    train = {row for row, side in sides.items() if side == "train"}
    test = {row for row, side in sides.items() if side == "test"}
    assert (len(train), len(test)) == (90, 10)
    assert train.isdisjoint(test)


@given(count=st.integers(min_value=20, max_value=300), fraction=fractions, seed=seeds)
def test_count_is_exact(count: int, fraction: float, seed: int) -> None:
    """Without relations the test side has round(n · fraction) rows."""
    split = split_rows(singles(count), fraction=fraction, seed=seed)
    assert split.test == round(count * fraction) == split.wanted_test


@given(items=related_items(), fraction=fractions, seed=seeds, shuffle=st.randoms())
def test_order_of_rows_does_not_matter(
    items: list[SplitItem], fraction: float, seed: int, shuffle: random.Random
) -> None:
    """The same rows in another order get the same sides, and so do they a second time."""
    shuffled = items.copy()
    shuffle.shuffle(shuffled)
    first, second = try_split(items, fraction, seed), try_split(shuffled, fraction, seed)
    if first is None or second is None:
        assert first is second
        return
    assert sides_by_row(items, first) == sides_by_row(shuffled, second)


def test_row_ids_do_not_matter() -> None:
    """The same structures under other row ids, as in a copied database, get the same sides."""
    items = singles(50)
    renumbered = [SplitItem(1000 - item.row_id, item.fingerprint) for item in items]
    assert (
        split_rows(items, fraction=0.2, seed=1).sides
        == split_rows(renumbered, fraction=0.2, seed=1).sides
    )


def test_seed_matters() -> None:
    """Another seed gives another test side."""
    items = singles(100)
    assert (
        split_rows(items, fraction=0.1, seed=1).sides
        != split_rows(items, fraction=0.1, seed=2).sides
    )


@given(items=related_items(), fraction=fractions, seed=seeds)
def test_relations_never_straddle(items: list[SplitItem], fraction: float, seed: int) -> None:
    """Rows of one group or one structure are on one side, and never too many in the test side."""
    split = try_split(items, fraction, seed)
    if split is None:
        return
    side_of: dict[str, str] = {}
    for item, side in zip(items, split.sides, strict=True):
        assert side_of.setdefault(item.fingerprint, side) == side
        if item.group is not None:
            assert side_of.setdefault(f"group {item.group}", side) == side
    assert split.test <= split.wanted_test


@given(
    old=st.integers(min_value=20, max_value=80),
    new=st.integers(min_value=0, max_value=80),
    fraction=st.floats(min_value=0.1, max_value=0.5),
    seeds=st.tuples(seeds, seeds),
)
def test_inherited_sides_are_kept(
    old: int, new: int, fraction: float, seeds: tuple[int, int]
) -> None:
    """What was test stays test and what was train stays train when rows are added."""
    parent_items = singles(old)
    parent = split_rows(parent_items, fraction=fraction, seed=seeds[0])
    inherited = Inheritance(
        {item.fingerprint: side for item, side in zip(parent_items, parent.sides, strict=True)}
    )
    items = singles(old + new)
    child = split_rows(items, fraction=fraction, seed=seeds[1], inherited=inherited)
    assert child.sides[:old] == parent.sides
    assert child.test == round((old + new) * fraction)
    assert (child.inherited_test, child.inherited_train) == (parent.test, old - parent.test)


def test_group_is_inherited_by_its_new_rows() -> None:
    """New rows of a trajectory that was tested on are test rows too."""
    items = [*singles(20), SplitItem(21, "new", "md-7")]
    for side in ("train", "test"):
        inherited = Inheritance(groups={"md-7": side})
        split = split_rows(items, fraction=0.2, seed=1, inherited=inherited)
        assert split.sides[-1] == side
        assert split.test == 4


@given(shrink=st.integers(min_value=0, max_value=9))
def test_inherited_test_rows_are_never_moved(shrink: int) -> None:
    """When training rows vanish, the test side keeps its rows though they are too many."""
    items = singles(10 + shrink)
    tested = {item.fingerprint: "test" for item in items[:5]}
    trained = {item.fingerprint: "train" for item in items[5:]}
    split = split_rows(items, fraction=0.1, seed=1, inherited=Inheritance({**tested, **trained}))
    assert split.test == 5 > split.wanted_test


def test_contradicting_inheritance_is_refused() -> None:
    """Rows that the parent had on both sides and a group now ties together are an error."""
    items = [SplitItem(1, "a", "md"), SplitItem(2, "b", "md"), *singles(10, start=2)]
    with pytest.raises(DataError, match=r"rows 1, 2 belong on one side \(group md\)") as caught:
        split_rows(items, fraction=0.2, seed=1, inherited=Inheritance({"a": "train", "b": "test"}))
    assert "group_by" in str(caught.value.hint)


@pytest.mark.parametrize(("count", "fraction"), [(4, 0.1), (1, 0.9), (3, 0.9), (0, 0.5)])
def test_empty_side_is_refused(count: int, fraction: float) -> None:
    """A fraction that leaves a side without a row is an error that says the numbers."""
    with pytest.raises(DataError, match=f"{count} structures at .*{fraction}.* side empty"):
        split_rows(singles(count), fraction=fraction, seed=1)


def test_one_group_for_all_is_refused() -> None:
    """A single group can't be split: the error points at the grouping."""
    items = [SplitItem(n, fingerprint_of(n), "all") for n in range(20)]
    with pytest.raises(DataError, match="test side empty") as caught:
        split_rows(items, fraction=0.1, seed=1)
    assert "group_by" in str(caught.value.hint)


def test_common_test_rows_are_test_in_both(tmp_path: Path) -> None:
    """By structure, not by row id: another database may have numbered them anew."""
    ours, theirs = tmp_path / "ours.csv.gz", tmp_path / "theirs.csv.gz"
    rows = [SplitItem(row_id=n, fingerprint=fingerprint_of(n)) for n in range(6)]
    write_index(ours, index_text(rows, ["test", "test", "test", "train", "train", "test"]))
    old = [SplitItem(row_id=n + 100, fingerprint=fingerprint_of(n)) for n in range(5)]
    write_index(theirs, index_text(old, ["test", "train", "test", "train", "test"]))
    assert common_test_rows(ours, theirs) == {0, 2}
