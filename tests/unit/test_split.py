"""The split is exact, deterministic, stable, and keeps related rows together."""

from __future__ import annotations

import hashlib
import random
from itertools import product
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlip_job.dataset.files import OutputFile, common_test_rows, write_index
from mlip_job.dataset.rows import SIDES, Side
from mlip_job.dataset.split import Inheritance, Split, split_by_key, split_rows
from mlip_job.errors import DataError
from tests.datasets import Entry, entries_of


def fingerprint_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def singles(count: int, *, start: int = 0) -> list[Entry]:
    return [Entry(row_id=n + 1, fingerprint=fingerprint_of(n)) for n in range(start, count)]


def split_items(
    items: list[Entry], *, fraction: float, seed: int, inherited: Inheritance | None = None
) -> Split:
    return split_rows(entries_of(items), fraction=fraction, seed=seed, inherited=inherited)


def sides_of(split: Split) -> list[Side]:
    return ["test" if tested else "train" for tested in split.tested.tolist()]


def sides_by_row(items: list[Entry], split: Split) -> dict[int, str]:
    return {item.row_id: side for item, side in zip(items, sides_of(split), strict=True)}


fractions = st.floats(min_value=0.05, max_value=0.95)
seeds = st.integers(min_value=0, max_value=2**32)


@st.composite
def related_items(draw: st.DrawFn) -> list[Entry]:
    count = draw(st.integers(min_value=12, max_value=60))
    structures = st.integers(min_value=0, max_value=2 * count)
    groups = st.one_of(st.none(), st.integers(min_value=0, max_value=count).map(str))
    return [
        Entry(row_id=n + 1, fingerprint=fingerprint_of(draw(structures)), group=draw(groups))
        for n in range(count)
    ]


def try_split(items: list[Entry], fraction: float, seed: int) -> Split | None:
    try:
        return split_items(items, fraction=fraction, seed=seed)
    except DataError:
        return None


@given(count=st.integers(min_value=20, max_value=300), fraction=fractions, seed=seeds)
def test_count_is_exact(count: int, fraction: float, seed: int) -> None:
    """Without relations the test side has round(n · fraction) rows."""
    split = split_items(singles(count), fraction=fraction, seed=seed)
    assert split.test == round(count * fraction) == split.wanted_test


@given(items=related_items(), fraction=fractions, seed=seeds, shuffle=st.randoms())
def test_order_of_rows_does_not_matter(
    items: list[Entry], fraction: float, seed: int, shuffle: random.Random
) -> None:
    """The same rows in another order get the same sides, also a second time."""
    shuffled = items.copy()
    shuffle.shuffle(shuffled)
    first, second = try_split(items, fraction, seed), try_split(shuffled, fraction, seed)
    if first is None or second is None:
        assert first is second
        return
    assert sides_by_row(items, first) == sides_by_row(shuffled, second)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_structures_are_numbered_in_the_order_of_their_fingerprints(count: int) -> None:
    prints = [fingerprint_of(n) for n in np.random.default_rng(0).integers(0, 12, count)]
    entries = entries_of([Entry(row_id=index, fingerprint=p) for index, p in enumerate(prints)])
    _, expected = np.unique(np.array(prints, dtype=str), return_inverse=True)
    assert entries.structures.tolist() == expected.tolist()


def test_row_ids_do_not_matter() -> None:
    """Structures get the same sides in a copied database, and others by another seed."""
    items = singles(100)
    renumbered = [Entry(1000 - item.row_id, item.fingerprint) for item in items]
    first = sides_of(split_items(items, fraction=0.1, seed=1))
    assert sides_of(split_items(renumbered, fraction=0.1, seed=1)) == first
    assert sides_of(split_items(items, fraction=0.1, seed=2)) != first


@given(items=related_items(), fraction=fractions, seed=seeds)
def test_relations_never_straddle(items: list[Entry], fraction: float, seed: int) -> None:
    split = try_split(items, fraction, seed)
    if split is None:
        return
    side_of: dict[str, str] = {}
    for item, side in zip(items, sides_of(split), strict=True):
        assert side_of.setdefault(item.fingerprint, side) == side
        if item.group is not None:
            assert side_of.setdefault(f"group {item.group}", side) == side


@given(
    old=st.integers(min_value=20, max_value=80),
    new=st.integers(min_value=0, max_value=80),
    fraction=st.floats(min_value=0.1, max_value=0.5),
    seeds=st.tuples(seeds, seeds),
)
def test_inherited_sides_are_kept(
    old: int, new: int, fraction: float, seeds: tuple[int, int]
) -> None:
    """Test rows stay test and training rows stay training when rows are added."""
    parent_items = singles(old)
    parent = split_items(parent_items, fraction=fraction, seed=seeds[0])
    fingerprints = [item.fingerprint for item in parent_items]
    inherited = Inheritance.of(zip(fingerprints, sides_of(parent), strict=True))
    items = singles(old + new)
    child = split_items(items, fraction=fraction, seed=seeds[1], inherited=inherited)
    assert sides_of(child)[:old] == sides_of(parent)
    share = new * fraction  # of the new rows, rounded so that the total is exact
    assert floor(share + 1e-6) <= child.new_test <= ceil(share - 1e-6)
    assert abs(child.test - (old + new) * fraction) <= 1
    assert (child.inherited_test, child.inherited_train) == (parent.test, old - parent.test)


@given(shrink=st.integers(min_value=0, max_value=9))
def test_inherited_test_rows_are_never_moved(shrink: int) -> None:
    """When training rows disappear, the test side keeps its rows even if they are too many."""
    items = singles(10 + shrink)
    sides: list[Side] = ["test"] * 5 + ["train"] * (len(items) - 5)
    fingerprints = [item.fingerprint for item in items]
    inherited = Inheritance.of(zip(fingerprints, sides, strict=True))
    split = split_items(items, fraction=0.1, seed=1, inherited=inherited)
    assert split.test == split.wanted_test == 5


def test_contradicting_inheritance_is_rejected() -> None:
    """Rows of one group that are on both sides in the parent are an error."""
    one, other = fingerprint_of(-1), fingerprint_of(-2)
    items = [Entry(1, one, "md"), Entry(2, other, "md"), *singles(10, start=2)]
    inherited = Inheritance.of([(one, "train"), (other, "test")])
    with pytest.raises(DataError, match=r"rows 1, 2 belong on one side \(group md\)") as caught:
        split_items(items, fraction=0.2, seed=1, inherited=inherited)
    assert "group_by" in str(caught.value.hint)


@pytest.mark.parametrize(("count", "fraction"), [(4, 0.1), (1, 0.9), (3, 0.9), (0, 0.5)])
def test_empty_side_is_rejected(count: int, fraction: float) -> None:
    """A fraction that leaves a side without a row is an error with the numbers."""
    with pytest.raises(DataError, match=f"{count} structures at .*{fraction}.* side empty"):
        split_items(singles(count), fraction=fraction, seed=1)


def test_one_group_for_all_is_rejected() -> None:
    """A single group can't be split: the error names the grouping."""
    items = [Entry(n, fingerprint_of(n), "all") for n in range(20)]
    with pytest.raises(DataError, match="test side empty") as caught:
        split_items(items, fraction=0.1, seed=1)
    assert "group_by" in str(caught.value.hint)


def grouped(sizes: list[int]) -> list[Entry]:
    groups = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    return [Entry(n + 1, fingerprint_of(n), group) for n, group in enumerate(groups)]


@pytest.mark.parametrize(
    ("sizes", "fraction", "count"),
    [
        ([10] * 16, 0.1, 20),  # 16 wanted: closer than 10
        ([10] * 14, 0.1, 10),  # 14 wanted
        ([10] * 15, 0.1, 10),  # 15 wanted: the smaller one of two
        ([3, 5, 7, 7, 9, 11, 13], 0.2, 11),
        ([7, 7, 5, 31], 0.2, 12),
        ([10, 10], 0.1, 10),  # 2 wanted: the nearest count, 0, leaves no test side
        ([9, 1], 0.9, 9),
    ],
)
def test_nearest_count_is_found(sizes: list[int], fraction: float, count: int) -> None:
    """If groups prevent the exact count, the test side has the nearest possible one."""
    for seed in range(5):
        split = split_items(grouped(sizes), fraction=fraction, seed=seed)
        assert split.test == count
        assert split.wanted_test == round(sum(sizes) * fraction)


@given(
    sizes=st.lists(st.integers(min_value=1, max_value=9), min_size=2, max_size=9),
    fraction=fractions,
    seed=seeds,
)
def test_no_choice_of_groups_is_nearer(sizes: list[int], fraction: float, seed: int) -> None:
    """Compared with all choices; those that leave a side empty are excluded."""
    total = sum(sizes)
    wanted = round(total * fraction)
    if wanted in (0, total):
        return
    split = split_items(grouped(sizes), fraction=fraction, seed=seed)
    choices = (
        sum(size for size, taken in zip(sizes, chosen, strict=True) if taken)
        for chosen in product((False, True), repeat=len(sizes))
    )
    best = min(abs(count - wanted) for count in choices if 0 < count < total)
    assert abs(split.test - wanted) == best


def test_new_rows_give_their_own_share() -> None:
    """Whatever the surplus of the parent's test side, a tenth of the new rows is test."""
    for parent_test in (0, 5, 10, 40):
        sides: list[Side] = ["test"] * parent_test + ["train"] * (100 - parent_test)
        inherited = Inheritance.of(
            (fingerprint_of(n), side) for n, side in zip(range(100), sides, strict=True)
        )
        split = split_items(singles(150), fraction=0.1, seed=1, inherited=inherited)
        assert (split.new, split.new_test) == (50, 5)
        assert split.test == split.wanted_test == parent_test + 5


def test_shares_of_few_new_rows_add_up() -> None:
    """Four rows per generation give a test row every two or three generations, not never."""
    sides = sides_of(split_items(singles(100), fraction=0.1, seed=1))
    for total in range(104, 141, 4):
        known = [(fingerprint_of(n), side) for n, side in enumerate(sides)]
        split = split_items(singles(total), fraction=0.1, seed=1, inherited=Inheritance.of(known))
        sides = sides_of(split)
        assert split.test == round(total * 0.1)


def keyed(sides: list[str | None], *, groups: dict[int, str] | None = None) -> list[Entry]:
    return [
        Entry(n, fingerprint_of(n), group=(groups or {}).get(n), side=side)
        for n, side in enumerate(sides, start=1)
    ]


def refused_by_key(items: list[Entry], inherited: Inheritance | None = None) -> str:
    with pytest.raises(DataError) as caught:
        split_by_key(entries_of(items), key="side", inherited=inherited)
    return caught.value.message


@given(tested=st.lists(st.booleans(), min_size=2, max_size=40))
def test_key_decides_the_sides(tested: list[bool]) -> None:
    """Each row is on the named side, for any numbers of both."""
    sides: list[Side] = ["test" if test else "train" for test in tested]
    if len(set(sides)) == 1:
        return
    split = split_by_key(entries_of(keyed([*sides])), key="side")
    assert sides_of(split) == sides
    assert split.test == split.wanted_test == sum(tested)


def test_parent_is_counted_where_it_agrees_with_the_key() -> None:
    """Rows and groups that the parent has on the same side are inherited."""
    items = keyed(["train", "test", "train", "test"], groups={4: "md"})
    inherited = Inheritance.of([(fingerprint_of(1), "train")], {"md": "test"})
    split = split_by_key(entries_of(items), key="side", inherited=inherited)
    assert (split.inherited_train, split.inherited_test) == (1, 1)


def test_all_contradictions_of_a_key_are_listed_at_once() -> None:
    """Each kind with its rows: no value, other values, groups, structures, the parent's split."""
    items = [
        *keyed(
            ["train", "test", None, "Test", "train", "test", None, "train", "test", "train"],
            groups={1: "md", 2: "md"},
        ),
        Entry(11, fingerprint_of(5), side="test"),
        Entry(12, fingerprint_of(99), "relaxed", side="train"),
    ]
    inherited = Inheritance.of(
        [(fingerprint_of(9), "train"), (fingerprint_of(10), "test")], {"relaxed": "test"}
    )
    message = refused_by_key(items, inherited)
    for part in (
        "'side'",
        "no value in rows 3, 7;",
        "the value 'Test' in row 4;",
        "group 'md' is on both sides: train row 1, test row 2",
        "equal structures are on both sides: train row 5, test row 11",
        "has row 9 in train, the key says test",
        "has rows 10, 12 in test, the key says train",
    ):
        assert part in message


def test_contradictions_of_a_key_are_counted_where_they_are_many() -> None:
    """Ten of a kind are listed, and the number of the others."""
    many = [Entry(n, fingerprint_of(n // 2), side=SIDES[n % 2]) for n in range(60)]
    assert "so are 20 more structures" in refused_by_key(many)
    strange = keyed(["train", "test", *(f"fold-{n}" for n in range(30))])
    assert "20 more values in rows 13, 14, 15" in refused_by_key(strange)
    without = keyed(["train", "test", *[None] * 30])
    assert "no value in rows 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 20 more" in refused_by_key(without)


def test_common_test_rows_are_test_in_both(tmp_path: Path) -> None:
    """By structure, not by row id: another database may have other numbers."""
    ours, theirs = tmp_path / "ours.csv.gz", tmp_path / "theirs.csv.gz"
    for path, first, tested in ((ours, 0, [1, 1, 1, 0, 0, 1]), (theirs, 100, [1, 0, 1, 0, 1])):
        rows = [Entry(first + n, fingerprint_of(n)) for n in range(len(tested))]
        split = Split(np.array(tested, dtype=np.bool_), sum(tested), 0, 0)
        with OutputFile(path, compressed=True) as file:
            write_index(file, entries_of(rows), split)
    assert common_test_rows(ours, theirs) == {0, 2}
