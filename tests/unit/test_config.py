"""The configuration is validated, layered and never silently ignored."""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import ValidationError

from mlip_job.config import JobConfig, TrainingConfig, load_config
from mlip_job.config.load import ALTERNATIVES
from mlip_job.config.removed import KEYS, VALUES, without_defaults
from mlip_job.config.template import commented_config
from mlip_job.errors import ConfigError


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "mlip-job.yaml"
    path.write_text("family: cu-ni\ntraining:\n  cutoff: 5.5\n")
    return path


def test_later_sources_win(config_file: Path) -> None:
    """Defaults, then the file, then the environment, then --set."""
    environment = {"MLIP_JOB__TRAINING__CUTOFF": "5.8", "MLIP_JOB__TRAINING__SEED": "7"}
    assert load_config(config_file, environment={}).training.cutoff == 5.5
    assert load_config(config_file, environment=environment).training.cutoff == 5.8
    config = load_config(config_file, assignments=["training.cutoff=6.0"], environment=environment)
    assert config.training.cutoff == 6.0
    assert config.training.seed == 7
    assert config.training.test_fraction == 0.1


def test_values_from_environment_and_set_are_yaml(config_file: Path) -> None:
    """Lists, mappings and nulls; 1e-8 is a number, which YAML 1.1 reads as text."""
    config = load_config(
        config_file,
        assignments=[
            "training.ladder_step=null",
            "training.energy_weight=1e-8",
            "dataset.reference_energies={Cu: -3.7}",
        ],
        environment={"MLIP_JOB__TRAINING__ELEMENTS": "[Cu, Ni]"},
    )
    assert config.training.ladder_step is None
    assert config.training.energy_weight == 1e-8
    assert config.dataset.reference_energies == {"Cu": -3.7}
    assert config.training.elements == ("Cu", "Ni")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.cutof=6", "training.cutof: unknown key; did you mean training.cutoff?"),
        ("cutoff=6", "cutoff: unknown key; did you mean training.cutoff?"),
        ("trainig.cutoff=6", "trainig: unknown key; did you mean training?"),
        ("training.cutoff=-1", "training.cutoff: Input should be greater than 0"),
        ("training.cutoff=.nan", "training.cutoff: Input should be a finite number"),
        ("training.test_fraction=-1", "test_fraction: Input should be greater than or equal to 0"),
        ("training.test_fraction=1", "training.test_fraction: Input should be less than 1"),
        ("family=Cu Ni", "family: takes up to 40 lower-case letters, digits and '-'"),
        ("training.ladder_step=[1, 2]", "training.ladder_step: takes a whole number"),
        ("training.ladder_step=1.5", "training.ladder_step: takes a whole number"),
        ("training.overrides.data.filename=x", "sets data.filename, which follows from"),
        ("training.overrides.potential=x", "sets potential, which follows from"),
        ("training.elements=[Cu, Cu]", "names an element twice"),
        ("training.start_from=0", "training.start_from: takes previous, none, or the number"),
        ("training.start_from=foo", "training.start_from: takes previous, none, or the number"),
        ("training.elements=Cu", "training.elements: takes auto, or a list of elements"),
        ("training.elements=[cu]", "training.elements.0: 'cu' is no symbol of an element"),
        ("training.ladder_step=foo", "training.ladder_step: takes null, a whole number"),
        ("training.weighting=foo", "training.weighting: takes uniform, {energy_based:"),
        ("training.weighting={by_grup: {}}", "training.weighting: takes uniform, {energy_based:"),
        (
            "training.weighting={by_group: {a: {enrgy: 2}}}",
            "training.weighting.by_group.a.enrgy: unknown key; did you mean",
        ),
        ("training.weighting={energy_based: {DEup: -1}}", "energy_based.DEup: Input should be"),
        ("dataset.reference_energies=foo", "dataset.reference_energies: takes auto, 0, or an"),
        ("dataset.reference_energies={cu: 1}", "energies.cu: 'cu' is no symbol of an element"),
        ("dataset.reference_energies={Cu: x}", "dataset.reference_energies.Cu: Input should be"),
    ],
)
def test_wrong_values_are_named_with_their_key(
    config_file: Path, assignment: str, message: str
) -> None:
    """One line names the wrong key and, for a misspelling, the similar one."""
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, assignments=[assignment], environment={})
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("key", sorted(KEYS.keys() - {"submit.kubernetes.claims.sub_path"}))
def test_the_error_for_a_removed_key_names_its_replacement(config_file: Path, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, assignments=[f"{key}=1"], environment={})
    assert f"  {key}: this key was removed: {KEYS[key]} (--set)" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_removed_keys_with_their_default_are_no_difference() -> None:
    """A manifest of an earlier version has them; another value stays a difference."""
    earlier = {
        "l2_coeffs": 1e-10,
        "w0_rad": 2.0,
        "weighting": {"energy_based": {"DE": 1, "DEup": 3}},
    }
    found = without_defaults(earlier, "training")
    assert found == {"w0_rad": 2.0, "weighting": {"energy_based": {"DEup": 3}}}


@pytest.mark.parametrize(("key", "value"), VALUES)
def test_the_error_for_a_removed_value_names_its_replacement(
    config_file: Path, key: str, value: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, assignments=[f"{key}={value}"], environment={})
    assert f"  {key}: {value} was removed: {VALUES[key, value]} (--set)" in str(caught.value)


def test_the_error_for_a_union_names_its_types() -> None:
    """Otherwise pydantic's own message for a union would be shown."""
    unions = {
        f"{section}.{key}"
        for section, part in JobConfig.model_fields.items()
        for key, field in getattr(part.annotation, "model_fields", {}).items()
        if len({a for a in get_args(field.annotation) if a is not type(None)}) > 1
        and get_origin(field.annotation) in (Union, UnionType)
    }
    assert unions == set(ALTERNATIVES)


def test_all_problems_are_reported_at_once(config_file: Path) -> None:
    """So that a file is corrected once."""
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, assignments=["training.cutoff=-1", "storage.ur=x"], environment={})
    assert "training.cutoff" in str(caught.value)
    assert "storage.ur: unknown key; did you mean storage.url?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no configuration at"),
        ("", "holds no mapping"),
        ("- 1", "holds no mapping"),
        ("family: [", "is not valid YAML"),
        ("family: cu\nfamily: au\n", "line 2, .*the key 'family' is given twice"),
        ("family: cu\ntraining: {seed: 1, seed: 2}\n", "the key 'seed' is given twice"),
        ("family: cu\n? [a, b]\n: 1\n", "is not valid YAML: .* unhashable key"),
        ("family: cu\n1: 2\n", "1: "),
    ],
)
def test_unusable_files_are_rejected(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "mlip-job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path, environment={})


def test_paths_are_relative_to_the_file(config_file: Path) -> None:
    """Except URLs: a bucket or a server."""
    config = load_config(config_file, environment={})
    base = config_file.parent
    assert config.database.url == str(base / "structures.db")
    assert config.storage.url == str(base / "store")
    assert config.work_dir == str(base / "work")
    urls = ["storage.url=s3://bucket/p", "database.url=postgresql://u@h/d"]
    config = load_config(config_file, assignments=urls, environment={})
    assert (config.storage.url, config.database.url) == ("s3://bucket/p", "postgresql://u@h/d")


@pytest.mark.parametrize(
    ("value", "kind"),
    [("true", "linear"), ("linear", "linear"), ("full", "full"), ("false", None)],
)
def test_active_set_is_a_choice_or_a_switch(value: str, kind: str | None) -> None:
    given = {"family": "cu", "evaluation": {"active_set": yaml.safe_load(value)}}
    assert JobConfig.model_validate(given).evaluation.active_set_kind == kind


def test_limits_on_test_errors_need_a_test_side() -> None:
    """With an empty test side they could not be checked; a split_key may fill it."""
    values = {
        "family": "cu",
        "training": {"test_fraction": 0},
        "evaluation": {"gate": {"max_force_rmse_mev": 50}},
    }
    with pytest.raises(ValidationError, match=r"gate\.max_force_rmse_mev can't be judged"):
        JobConfig.model_validate(values)
    JobConfig.model_validate(values | {"dataset": {"split_key": "side"}})
    JobConfig.model_validate(values | {"evaluation": {}})


def test_fingerprint_depends_on_settings_of_the_potential() -> None:
    """Another cutoff is another generation; another location of the store is not."""
    config = JobConfig.model_validate({"family": "cu"})
    moved = JobConfig.model_validate(
        {
            "family": "cu",
            "storage": {"url": "s3://b/p"},
            "training": {"require_gpu": True},
            "evaluation": {"gate": {"max_energy_rmse_mev": 5}, "active_set": False},
        }
    )
    changed = JobConfig.model_validate({"family": "cu", "training": {"cutoff": 6.0}})
    assert moved.fingerprint() == config.fingerprint()
    assert changed.fingerprint() != config.fingerprint()


def test_a_dumped_configuration_can_be_loaded() -> None:
    config = JobConfig.model_validate(
        {
            "family": "cu",
            "training": {"weighting": {"by_group": {"surface": {"energy": 2}}}},
            "dataset": {"reference_energies": 0},
        }
    )
    assert JobConfig.model_validate(config.model_dump(mode="json")) == config


def test_selection_can_name_the_generation() -> None:
    """An active-learning loop tags rows with the iteration that requested them."""
    config = JobConfig.model_validate(
        {"family": "cu", "database": {"select": "generation<={generation}"}}
    )
    assert config.database.for_generation(3).select == "generation<=3"


def test_template_is_valid_and_has_the_given_values(tmp_path: Path) -> None:
    """The output of init is loaded unchanged, also with unusual values."""
    path = tmp_path / "mlip-job.yaml"
    path.write_text(
        commented_config(
            family="cu",
            values={
                "database": {"url": "my: data's.db", "select": "status=COMPLETED"},
                "storage": {"url": "s3://b/p"},
                "training": {"cutoff": 4.0},
            },
            remarks={"cutoff": "Here, for molecules."},
        )
    )
    assert "  # Here, for molecules.\n  cutoff: 4.0\n" in path.read_text()
    config = load_config(path, environment={})
    assert config.database.url == str(tmp_path / "my: data's.db")
    assert config.database.select == "status=COMPLETED"
    assert config.training == TrainingConfig(cutoff=4.0)


def test_template_is_short_and_sets_nothing_else() -> None:
    """At most 60 lines including comments; all other keys have their defaults."""
    remarks = dict.fromkeys(("group_by", "config_type", "split_key", "cutoff"), "a remark " * 15)
    text = commented_config(family="cu", values={}, remarks=remarks)
    assert len(text.splitlines()) <= 60
    assert "mlip-job config schema" in text
    assert JobConfig.model_validate(yaml.safe_load(text)) == JobConfig(family="cu")


@pytest.mark.parametrize(
    ("training", "valid", "message"),
    [
        # The validation part, or the test set; pacemaker accepts one.
        ({"test_evaluation": "pacemaker"}, {"validation_fraction": 0},
         "set validation_fraction: 0, or leave"),
        # Either may raise after the minimiser has ended, and the fit would be lost.
        ({"overrides": {"fit": {"min_relative_test_loss_per_iter": 1}}}, {"overrides": {}},
         r"follows from training\.early_stopping_patience"),
        ({"overrides": {"fit": {"early_stopping_patience": 1}}}, {"overrides": {}},
         r"follows from training\.early_stopping_patience"),
        ({"overrides": {"potential": {"embeddings": {"ALL": {"npot": "FinnisSinclair"}}}}},
         {"linear_start": False, "max_iter": 1}, "embeddings.*set linear_start: false"),
        ({"overrides": {"fit": {"trainable_parameters": {"Cu": "func"}}}},
         {"linear_start": False, "max_iter": 1}, "trainable_parameters.*set linear_start: false"),
        ({"overrides": {"fit": {"loss": {"kappa": "auto"}}}},
         {"linear_start": False, "max_iter": 1}, "kappa.*set linear_start: false"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(
    training: dict[str, Any], valid: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingConfig.model_validate(training)
    TrainingConfig.model_validate(training | valid)
