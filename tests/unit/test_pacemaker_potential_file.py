"""Potentials are read and prepared for another fit without any loss of precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlip_job.errors import TrainingError
from mlip_job.training.pacemaker.potential_file import (
    as_start,
    elements_of,
    perturbed,
    read_potential,
    write_potential,
)

# Written by pacemaker after a fit with `repulsion: auto`, reduced to two functions.
FINISHED = """\
metadata:
  _fit_cycles: 1
  _loss: 0.12029631222181905
global:
  DeltaSplineBins: 0.001
species:
  - speciesblock: Cu
    ndensityi: 2
    npoti: FinnisSinclairShiftedScaled
    parameters: [1, 1, 1, 0.5]
    rho_core_cut: 1
    drho_core_cut: 1
    nradmaxi: 1
    lmaxi: 0
    rcutij: 5
    dcutij: 0.01
    NameOfCutoffFunctionij: cos
    r_in: 1.7123785983829816
    delta_in: 0.1
    inner_cutoff_type: zbl
    nradbaseij: 2
    radbase: SBessel
    radparameters: [5.25]
    radcoefficients: [[[1.3775186680771205, -5.5962099818889378e-06]]]
    core-repulsion: [1, 1]
    nbody:
      - {type: Cu Cu, nr: [1], nl: [0], c: [0.075156933995978836, 2e-05]}
      - {type: Cu Cu, nr: [2], nl: [0], c: [-0.45397955296658016, -1e-300]}
  - speciesblock: Cu Ni
    core-repulsion: [1, 1]
    r_in: 1.9
    delta_in: 0.1
    inner_cutoff_type: zbl
"""


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    path = tmp_path / "output_potential.yaml"
    path.write_text(FINISHED)
    return path


def test_exponents_without_a_dot_are_numbers(finished: Path) -> None:
    """Pacemaker writes YAML 1.2; as YAML 1.1 these coefficients would be text."""
    function = read_potential(finished)["species"][0]["nbody"]
    assert function[0]["c"] == [0.075156933995978836, 2e-05]
    assert function[1]["c"] == [-0.45397955296658016, -1e-300]


def test_elements_of_all_blocks(finished: Path) -> None:
    assert elements_of(read_potential(finished)) == ("Cu", "Ni")


def test_a_start_is_unfinished_and_without_inner_cutoff(finished: Path) -> None:
    """Else pacemaker would return at once, or switch off short distances of the new data."""
    start = as_start(read_potential(finished))
    assert start["metadata"] == {"_loss": 0.12029631222181905}
    unary, binary = start["species"]
    assert (unary["r_in"], unary["delta_in"], unary["inner_cutoff_type"]) == (0, 0, "distance")
    assert unary["core-repulsion"] == binary["core-repulsion"] == [0, 0]
    assert (unary["rho_core_cut"], unary["drho_core_cut"]) == (100000, 250)
    assert "rho_core_cut" not in binary


def test_coefficients_survive_writing(finished: Path, tmp_path: Path) -> None:
    content = read_potential(finished)
    write_potential(content, tmp_path / "copy.yaml")
    assert read_potential(tmp_path / "copy.yaml") == content


@pytest.mark.parametrize("text", ["", "species: [", "species: []", "- 1", "metadata: {}"])
def test_an_invalid_potential_is_rejected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "potential.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=r"potential\.yaml is no"):
        read_potential(path)


def test_noise_is_relative_and_follows_the_seed(finished: Path) -> None:
    """Only the functions' coefficients change, by about a tenth."""
    content = read_potential(finished)
    noisy = perturbed(content, 0.1, seed=7)
    assert noisy == perturbed(content, 0.1, seed=7) != perturbed(content, 0.1, seed=8)

    def without_coefficients(potential: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {**block, "nbody": [{**function, "c": 0} for function in block.get("nbody", [])]}
            for block in potential["species"]
        ]

    assert without_coefficients(noisy) == without_coefficients(content)
    ratios = [
        after / before
        for old, new in zip(_coefficients(content), _coefficients(noisy), strict=True)
        for before, after in zip(old, new, strict=True)
    ]
    assert len(ratios) == 4
    assert all(0.4 < ratio < 1.6 and ratio != 1 for ratio in ratios)


def _coefficients(potential: dict[str, Any]) -> list[list[float]]:
    return [function["c"] for block in potential["species"] for function in block.get("nbody", [])]


def test_pacemaker_evaluates_the_start_as_the_same_function(tmp_path: Path, finished: Path) -> None:
    """Above the inner cutoff the prepared potential gives pacemaker's own energies."""
    import numpy as np
    from ase.build import bulk
    from pyace import BBasisConfiguration, PyACECalculator

    content = read_potential(finished)
    content["species"] = content["species"][:1]
    write_potential(content, tmp_path / "zbl.yaml")
    write_potential(as_start(content), tmp_path / "start.yaml")
    energies = []
    for name in ("zbl.yaml", "start.yaml"):
        atoms = bulk("Cu", cubic=True)
        atoms.calc = PyACECalculator(BBasisConfiguration(str(tmp_path / name)))
        energies.append(atoms.get_potential_energy())
    assert energies[0] != 0
    assert np.isclose(*energies, rtol=0, atol=1e-12)
