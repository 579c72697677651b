"""Publishing, reading and pulling generations, on a directory and on a real S3 API."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlip_job.config import StorageConfig
from mlip_job.dataset.record import DatasetRecord
from mlip_job.errors import ConfigError, ConflictError, IntegrityError, StoreError
from mlip_job.registry import Manifest, MemberRegistry, Registry
from mlip_job.registry.maintenance import pull_generation
from mlip_job.registry.members import read_agreement
from mlip_job.store.open import open_store
from tests.manifests import publish

FAMILY = "cu-ni"


def _publish(registry: Registry, directory: Path, generation: int, attempt: str = "a1") -> Manifest:
    names = ("potential.yace", "potential.yaml", "report.json")
    return publish(registry, directory, generation, attempt, names=names)


def test_nothing_is_published_in_an_empty_store(registry: Registry) -> None:
    assert registry.numbers() == []
    assert list(registry.manifests()) == []
    assert registry.latest() is None
    assert registry.find(1) is None
    with pytest.raises(ConfigError, match=r"gen_01 .* is not published .*none yet"):
        registry.get(1)


def test_a_published_generation_is_complete(registry: Registry, tmp_path: Path) -> None:
    """Manifest, artefacts, the copies under potentials/, the pointer."""
    manifest = _publish(registry, tmp_path, 4)
    assert registry.find(4) == manifest == registry.get(4)
    assert registry.numbers() == [4]
    assert registry.latest() == 4
    for suffix in ("yace", "yaml"):
        expected = f"potential.{suffix} of a1\n".encode()
        assert registry.store.get(f"{FAMILY}/potentials/gen_04.{suffix}") == expected
        artefact = manifest.artefacts[f"potential.{suffix}"]
        assert registry.store.get(artefact.key) == expected
        assert artefact.size == len(expected)


def test_a_generation_without_manifest_does_not_exist(registry: Registry, tmp_path: Path) -> None:
    key = registry.keys.attempt(1, "a1", "potential.yace")
    registry.store.put(key, b"half a generation")
    registry.store.put(f"{registry.keys.generations}notes/readme", b"a stray folder")
    assert registry.numbers() == []
    assert registry.find(1) is None


def test_a_generation_is_published_once(registry: Registry, tmp_path: Path) -> None:
    """The later attempt gets a conflict that names the first, and changes nothing."""
    first = _publish(registry, tmp_path, 1, "first")
    with pytest.raises(ConflictError, match="published by attempt first meanwhile") as caught:
        _publish(registry, tmp_path, 1, "second")
    assert caught.value.exit_code == 73
    assert registry.get(1) == first
    assert registry.store.get(registry.keys.potential(1, "yace")) == b"potential.yace of first\n"


def test_exactly_one_of_many_attempts_publishes(storage: StorageConfig, tmp_path: Path) -> None:
    """Eight concurrent attempts, each with its own registry."""

    def attempt_to_publish(number: int) -> str | None:
        attempt = f"a{number}"
        try:
            _publish(Registry(open_store(storage), FAMILY), tmp_path / attempt, 1, attempt)
        except ConflictError:
            return None
        return attempt

    with ThreadPoolExecutor(8) as pool:
        winners = [attempt for attempt in pool.map(attempt_to_publish, range(8)) if attempt]
    registry = Registry(open_store(storage), FAMILY)
    assert winners == [registry.get(1).attempt]
    yace = registry.store.get(registry.keys.potential(1, "yace"))
    assert yace == f"potential.yace of {winners[0]}\n".encode()


def test_damage_is_found_and_named(registry: Registry, tmp_path: Path) -> None:
    """A changed artefact, a missing one, a changed copy, a missing dataset."""
    manifest = _publish(registry, tmp_path, 1)
    registry.store.put(manifest.artefacts["report.json"].key, b"tampered")
    registry.store.delete(manifest.artefacts["potential.yaml"].key)
    registry.store.put(registry.keys.potential(1, "yace"), b"tampered")
    record = registry.keys.dataset(manifest.dataset.id, "dataset.json")
    registry.store.delete(record)
    problems = "\n".join(registry.verify(manifest))
    assert f"{manifest.artefacts['report.json'].key} has the sha256" in problems
    assert f"{manifest.artefacts['potential.yaml'].key} is missing" in problems
    assert f"{FAMILY}/potentials/gen_01.yace has the sha256" in problems
    assert f"{record} is missing" in problems
    assert len(problems.splitlines()) == 4


def test_a_damaged_artefact_is_not_fetched(registry: Registry, tmp_path: Path) -> None:
    manifest = _publish(registry, tmp_path, 1)
    registry.store.put(manifest.artefacts["potential.yace"].key, b"tampered")
    mine = tmp_path / "mine" / "local.yace"
    mine.parent.mkdir()
    for before in ([], [mine]):
        for path in before:
            path.write_text("mine")
        with pytest.raises(IntegrityError, match="has the sha256"):
            registry.fetch(manifest, "potential.yace", mine)
        assert list(mine.parent.iterdir()) == before
    assert mine.read_text() == "mine"
    with pytest.raises(IntegrityError):
        pull_generation(registry, manifest, tmp_path / "pulled", with_dataset=False)
    assert list((tmp_path / "pulled").iterdir()) == []


def test_pull_names_the_potential_after_the_generation(registry: Registry, tmp_path: Path) -> None:
    """LAMMPS inputs refer to that name; existing files are kept, correct or not."""
    manifest = _publish(registry, tmp_path, 2)
    target = tmp_path / "pulled"
    pull_generation(registry, manifest, target, with_dataset=False)
    before = {path: path.stat().st_ino for path in target.iterdir()}
    assert sorted(path.name for path in before) == [
        "gen_02.yace",
        "gen_02.yaml",
        "manifest.json",
        "report.json",
    ]
    pull_generation(registry, manifest, target, with_dataset=True)
    assert {path: path.stat().st_ino for path in before} == before
    assert (target / "dataset" / "train.xyz").is_file()
    (target / "gen_02.yace").write_text("mine")
    with pytest.raises(ConflictError, match=r"gen_02\.yace exists with other content"):
        pull_generation(registry, manifest, target, with_dataset=False)
    assert (target / "gen_02.yace").read_text() == "mine"


@pytest.mark.parametrize("data", [b"", b"{}", b'{"generation": "x"}', b"\xff\xfe", None])
def test_unreadable_records_are_named(
    registry: Registry, tmp_path: Path, data: bytes | None
) -> None:
    """A manifest or pointer that is truncated or of a later version is named by its key."""
    if data is None:
        later = json.loads(_publish(registry, tmp_path, 1).to_json()) | {"schema_version": 3}
        data = json.dumps(later).encode()
    registry.store.put(registry.keys.manifest(1), data)
    with pytest.raises(IntegrityError, match=r"gen_01/manifest\.json is no manifest that this ver"):
        registry.find(1)
    registry.store.put(registry.keys.latest, data)
    with pytest.raises(IntegrityError, match=r"latest\.json is no pointer"):
        registry.latest()


def test_without_its_dataset_a_generation_is_not_published(
    registry: Registry, tmp_path: Path
) -> None:
    """The manifest would name a missing dataset, because gc considered the attempt dead."""
    put = registry.publish_dataset

    def put_and_lose(directory: Path, record: DatasetRecord) -> str:
        sha256 = put(directory, record)
        registry.store.delete(registry.keys.dataset(record.id, "dataset.json"))
        return sha256

    registry.publish_dataset = put_and_lose  # type: ignore[method-assign]
    with pytest.raises(IntegrityError, match=r"dataset\.json is missing"):
        _publish(registry, tmp_path, 1)
    assert registry.numbers() == []


def test_failed_upload_publishes_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is written last: a failure before it leaves no generation."""
    upload = registry.store.upload

    def failing(path: Path, key: str) -> str:
        if key.endswith("report.json"):
            raise StoreError("the network is gone")
        return upload(path, key)

    monkeypatch.setattr(registry.store, "upload", failing)
    with pytest.raises(StoreError, match="the network is gone"):
        _publish(registry, tmp_path, 1)
    assert registry.numbers() == []
    assert registry.store.head(registry.keys.potential(1, "yace")) is None
    monkeypatch.undo()
    _publish(registry, tmp_path, 1, "again")
    assert registry.get(1).attempt == "again"


BAD_NAMES = [
    "../../escaped",
    "/srv/escaped",
    "a/../../escaped",
    "..",
    ".",
    "",
    "a//b",
    "a/",
    "a\\b",
    "a\nb",
    "a\x00b",
    "a\x1b[31mb",
    "a\u202eb",
    "x" * 256,
    "x/" * 500 + "x",
]


def _rename(registry: Registry, key: str, old: str, new: str) -> None:
    text = registry.store.get(key).decode()
    assert json.dumps(old) in text
    registry.store.put(key, text.replace(json.dumps(old), json.dumps(new)).encode())


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_unsafe_names_in_records_are_damage(registry: Registry, tmp_path: Path, name: str) -> None:
    """In any record: one line names the object and the name, and the exit code is 65."""
    manifest = _publish(registry, tmp_path, 1)
    record_key = registry.keys.dataset(manifest.dataset.id, "dataset.json")
    data = json.loads(registry.store.get(record_key))
    data["files"][name] = data["files"].pop("train.xyz")
    registry.store.put(record_key, json.dumps(data).encode())
    changed = hashlib.sha256(registry.store.get(record_key)).hexdigest()
    forged = manifest.dataset.model_copy(update={"record_sha256": changed})
    with pytest.raises(IntegrityError) as caught:
        registry.dataset_record(forged)
    _require_named(caught.value, record_key, name)

    manifest_key = registry.keys.manifest(1)
    for old in ("report.json", manifest.artefacts["report.json"].key, manifest.dataset.id):
        registry.store.put(manifest_key, manifest.to_json())
        _rename(registry, manifest_key, old, name)
        with pytest.raises(IntegrityError) as caught:
            registry.get(1)
        _require_named(caught.value, manifest_key, name)

    member = MemberRegistry(registry.store, FAMILY, 1, of=2)
    member.agree_on_dataset(3, manifest.dataset)
    agreement_key = registry.keys.generation(3, "ensemble.json")
    _rename(registry, agreement_key, manifest.dataset.id, name)
    with pytest.raises(IntegrityError) as caught:
        read_agreement(registry, 3)
    _require_named(caught.value, agreement_key, name)


def _require_named(error: IntegrityError, key: str, name: str) -> None:
    assert error.exit_code == 65
    assert error.message.startswith(key)
    assert ascii(name)[:60] in error.message
    assert error.message.isprintable()
    assert len(error.message) < 400


def test_pull_stays_below_its_directory(registry: Registry, tmp_path: Path) -> None:
    """No symbolic link in it redirects the files, and none is replaced."""
    manifest = _publish(registry, tmp_path, 1)
    outside, target = tmp_path / "outside", tmp_path / "pulled"
    outside.mkdir()
    target.mkdir()
    artefact = manifest.artefacts["report.json"]
    nested = manifest.model_copy(update={"artefacts": {"metrics/report.json": artefact}})
    (target / "metrics").symlink_to(outside)
    with pytest.raises(ConflictError, match=r"metrics is a link that leads out of .*pulled"):
        pull_generation(registry, nested, target, with_dataset=False)
    assert list(outside.iterdir()) == []
    (target / "metrics").unlink()
    (target / "metrics").mkdir()
    (target / "metrics" / "report.json").symlink_to(outside / "report.json")
    with pytest.raises(ConflictError, match=r"report\.json exists, and is no file"):
        pull_generation(registry, nested, target, with_dataset=False)
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in target.iterdir()) == ["metrics"]


@pytest.mark.parametrize(
    "names",
    [
        ("potential.yace", "gen_01.yace"),
        ("manifest.json",),
        ("dataset/train.xyz",),
        ("dataset",),
        ("a", "a/b"),
    ],
    ids=str,
)
def test_pull_rejects_names_that_collide(
    registry: Registry, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """With each other, or with files that pull itself writes."""
    manifest = _publish(registry, tmp_path, 1)
    artefacts = dict.fromkeys(names, manifest.artefacts["potential.yace"])
    forged = manifest.model_copy(update={"artefacts": artefacts})
    with pytest.raises(IntegrityError, match=r"gen_01/manifest\.json names '.*' twice, or as file"):
        pull_generation(registry, forged, tmp_path / "pulled", with_dataset=True)
    assert list((tmp_path / "pulled").iterdir()) == []
