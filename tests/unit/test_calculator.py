"""The calculator of a published potential, without a store."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from ase import Atoms

from mlip_job.errors import ConfigError

_POTENTIAL = Path(__file__).parents[1] / "data" / "pacemaker" / "c_ladder" / "output_potential.yaml"
_REFERENCES = {"Cu": -1.25}

pytestmark = pytest.mark.pacemaker


@pytest.fixture
def potential(tmp_path: Path) -> Path:
    path = tmp_path / "potential.yaml"
    path.write_bytes(_POTENTIAL.read_bytes())
    return path


def test_a_calculator_can_be_copied_and_pickled(potential: Path) -> None:
    """Alone and with its structure; this ended the interpreter (std::bad_alloc)."""
    from mlip_job.calculator import GenerationCalculator

    atoms = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.4]])
    atoms.calc = GenerationCalculator(potential, _REFERENCES, label="cu gen_01")
    expected = atoms.get_potential_energy()
    for calculator in (
        copy.copy(atoms.calc),
        copy.deepcopy(atoms.calc),
        pickle.loads(pickle.dumps(atoms.calc)),  # noqa: S301 - our own
        copy.deepcopy(atoms).calc,
    ):
        other = atoms.copy()
        other.calc = calculator
        assert calculator is not atoms.calc
        assert other.get_potential_energy() == expected


def test_a_pickled_calculator_names_missing_files(potential: Path) -> None:
    """For example on another machine, whose cache does not have the potential."""
    from mlip_job.calculator import GenerationCalculator

    pickled = pickle.dumps(GenerationCalculator(potential, _REFERENCES, label="cu gen_01"))
    potential.unlink()
    with pytest.raises(ConfigError, match=r"cu gen_01 needs .*potential\.yaml.* not on this"):
        pickle.loads(pickled)  # noqa: S301 - our own
