"""An RO-Crate around the files of a pulled generation, for research archives.

``ro-crate-metadata.json`` says in the terms of schema.org what the files are, what they were made
from, by which programs and with which parameters; units stand with every number. It follows
https://w3id.org/ro/crate/1.3. The same generation always gives the same text.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mlip_job.crate.files import describe_file
from mlip_job.errors import ConfigError
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mlip_job.registry import Manifest

METADATA = "ro-crate-metadata.json"

_VERSION = "1.3"
_COMPLETED = "http://schema.org/CompletedActionStatus"

_LICENCE_REMARK = (
    "Whoever publishes this crate states here under which terms data and potential may be used. "
    "python-ace and tensorpotential, which trained the potential, are under an academic, "
    "non-commercial licence, which binds those who train with them."
)

_PARAMETER_UNITS = {
    "training.cutoff": "Å",
    "dataset.max_force": "eV/Å",
    "dataset.duplicate_tolerance": "eV/atom",
}


def require_rocrate() -> None:
    """Check that the library is installed.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if find_spec("rocrate") is None:
        raise ConfigError(
            "--crate needs the Python package rocrate", hint="pip install 'mlip-job[crate]'"
        )


def write_crate(directory: Path, files: Sequence[str], manifest: Manifest) -> str:
    """Write the metadata of a directory with the files of a generation; return its name.

    Parameters
    ----------
    directory
        Holds the files.
    files
        Their paths in it.
    manifest
        Of the generation.
    """
    from rocrate.rocrate import ROCrate  # noqa: PLC0415 - an extra

    crate = ROCrate(version=_VERSION)
    _Crate(crate, directory, manifest).fill(files)
    crate.metadata.write(directory)
    return METADATA


class _Crate:
    """Fills a crate, one kind of thing after the other."""

    def __init__(self, crate: Any, directory: Path, manifest: Manifest) -> None:
        self._crate = crate
        self._directory = directory
        self._manifest = manifest
        self._name = generation_name(manifest.generation)

    def fill(self, files: Sequence[str]) -> None:
        added = {file: self._file(file) for file in files}
        dataset = self._dataset([e for file, e in added.items() if file.startswith("dataset/")])
        parent = self._parent()
        made_from = [added["input.yaml"], dataset] + ([parent] if parent is not None else [])
        results = [
            entity
            for file, entity in added.items()
            if entity not in made_from and not file.startswith("dataset/")
        ]
        training = self._training([*made_from, *self._parameters()], results)
        root = self._crate.root_dataset
        root["name"] = f"Interatomic potential {self._manifest.family}, {self._name}"
        root["description"] = self._description()
        root["datePublished"] = self._manifest.ended.date().isoformat()
        root["keywords"] = ["interatomic potential", "atomic cluster expansion", "ACE"]
        root["license"] = self._entity(
            "#licence", "CreativeWork", name="Not stated", description=_LICENCE_REMARK
        )
        root["mainEntity"] = added[f"{self._name}.yace"]
        root["mentions"] = training
        root["variableMeasured"] = [*self._errors(), *self._reference_energies()]
        if parent is not None:
            root["isBasedOn"] = parent

    def _entity(self, id_: str, type_: str | list[str], /, **properties: Any) -> Any:
        from rocrate.model.contextentity import ContextEntity  # noqa: PLC0415 - an extra

        return self._crate.add(
            ContextEntity(self._crate, id_, properties={"@type": type_} | properties)
        )

    def _file(self, path: str) -> Any:
        local = self._directory / path
        return self._crate.add_file(local, path, properties=describe_file(path, local))

    def _dataset(self, files: Sequence[Any]) -> Any:
        reference = self._manifest.dataset
        described = {
            "name": f"Dataset {reference.id}",
            "description": f"{reference.train} training and {reference.test} test structures from "
            f"{reference.database}, where {reference.selection or 'all rows'}",
            "identifier": f"sha256 of dataset.json: {reference.record_sha256}",
        }
        if not files:
            return self._entity(f"#dataset-{reference.id}", "CreativeWork", **described)
        dataset = self._crate.add_dataset(dest_path="dataset/", properties=described)
        dataset["hasPart"] = list(files)
        return dataset

    def _parent(self) -> Any:
        parent = self._manifest.parent
        if parent is None:
            return None
        name = generation_name(parent.generation)
        how = {"continue": "with the same basis", "extend": "its basis was extended"}[parent.mode]
        return self._entity(
            f"#{name}",
            "CreativeWork",
            name=f"Interatomic potential {self._manifest.family}, {name}",
            description=f"What the fit started from, {how}",
            identifier=f"sha256 of potential.yaml: {parent.potential_sha256}",
        )

    def _training(self, made_from: Sequence[Any], results: Sequence[Any]) -> Any:
        manifest = self._manifest
        host = manifest.environment.host
        gpus = ", ".join(host.gpus) or "none"
        return self._crate.add_action(
            list(self._software()),
            "#training",
            object=list(made_from),
            result=list(results),
            properties={
                "@type": "CreateAction",
                "name": f"Training of {manifest.family} {self._name}",
                "description": f"{manifest.headline.iterations} iterations in "
                f"{len(manifest.attempts)} attempts; processor: {host.cpu}, {host.cores} cores, "
                f"GPU: {gpus}",
                "startTime": manifest.started.isoformat(timespec="seconds"),
                "endTime": manifest.ended.isoformat(timespec="seconds"),
                "actionStatus": _COMPLETED,
            },
        )

    def _software(self) -> Iterator[Any]:
        for name, version in self._manifest.environment.versions.items():
            if version is None:
                continue
            address = f"https://pypi.org/project/{name}/{version}/"
            if name == "python":
                address = f"https://docs.python.org/release/{version}/"
            yield self._entity(
                address, "SoftwareApplication", name=name, version=version, url=address
            )

    def _parameters(self) -> Iterator[Any]:
        for section in ("dataset", "training"):
            for key, value in self._manifest.config.get(section, {}).items():
                name = f"{section}.{key}"
                if value is not None:
                    yield self._value(name, value, _PARAMETER_UNITS.get(name))

    def _errors(self) -> Iterator[Any]:
        headline = self._manifest.headline
        for side, figures in (("train", headline.train), ("test", headline.test)):
            for quantity, value, unit in (
                ("energy", figures.rmse_energy_mev_per_atom, "meV/atom"),
                ("force component", figures.rmse_force_mev_per_angstrom, "meV/Å"),
            ):
                if value is not None:
                    yield self._value(f"RMSE {quantity} {side}", value, unit)

    def _reference_energies(self) -> Iterator[Any]:
        for element, energy in self._manifest.reference_energies.items():
            yield self._value(f"reference energy {element}", energy, "eV/atom")

    def _value(self, name: str, value: object, unit: str | None) -> Any:
        plain = value if isinstance(value, str | int | float) else json.dumps(value)
        with_unit = {} if unit is None else {"unitText": unit}
        identifier = "#" + name.replace(" ", "-")
        return self._entity(identifier, "PropertyValue", name=name, value=plain, **with_unit)

    def _description(self) -> str:
        manifest = self._manifest
        return (
            f"An ACE potential for {', '.join(manifest.elements)}, trained by mlip-job with "
            f"pacemaker on {manifest.dataset.train} structures. Energies of the potential lack the "
            "reference energies: E_DFT = E_potential + Σ n(element)·reference energy."
        )
