"""The command line: help, options, exit codes, and what it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import yaml

from mlip_job import __version__
from mlip_job.cli.main import VERBS
from mlip_job.cli.main import cli as group
from mlip_job.config.removed import OPTIONS
from tests.cli import Ended

Cli = Callable[..., Ended]

SLOW = {
    "ase", "boto3", "botocore", "isal", "jinja2", "kubernetes", "matplotlib", "numpy", "orjson",
    "pandas", "rich", "scipy",
}  # fmt: skip
HEAVY = SLOW | {"pydantic", "yaml"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mlip-job.yaml"
    path.write_text("family: cu\n")
    return path


def test_overview_matches_the_help_of_each_command() -> None:
    """The overview is written by hand so that it imports no command; it must stay consistent."""
    for verb, text in VERBS.items():
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        assert (command.help or "").split("\n")[0] == text
        assert command.name == verb


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(cli: Cli, verb: str) -> None:
    ended = cli(verb, "--help")
    assert ended.code == 0
    assert ended.out.startswith(f"Usage: mlip-job {verb}")
    if verb not in ("config", "completion"):
        assert "--set KEY=VALUE" in ended.out


def test_overview_names_verbs_and_exit_codes(cli: Cli) -> None:
    ended = cli("-h")
    assert ended.code == 0
    for verb in VERBS:
        assert f"  {verb} " in ended.out
    assert "73 generation exists" in " ".join(ended.out.split())
    assert cli("--version").out == f"mlip-job, version {__version__}\n"


def test_completion_is_installed_by_one_command(tmp_path: Path) -> None:
    """Bash completes commands, options and their values with the file that it finds."""
    program = Path(sys.executable).with_name("mlip-job")
    environment = {"HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    subprocess.run([program, "completion"], env=environment, check=True, capture_output=True)
    script = tmp_path / ".local/share/bash-completion/completions/mlip-job"

    def completed(*words: str) -> list[str]:
        code = f"source {script}; COMP_WORDS=(mlip-job {' '.join(words)}); "
        code += f"COMP_CWORD={len(words)}; _mlip_job_completion mlip-job; echo ${{COMPREPLY[@]}}"
        command = ["bash", "--norc", "-c", code]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return found.stdout.split()

    assert completed("st") == ["status"]
    assert "--generation" in completed("submit", "--gen")
    assert completed("submit", "--scheduler", "sl") == ["slurm"]


def modules_loaded_by(*arguments: object) -> set[str]:
    program = (
        "import sys\n"
        "from mlip_job.cli.main import cli\n"
        f"cli.main({[*map(str, arguments)]!r}, standalone_mode=False)\n"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert "click" in loaded
    return loaded


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """It is immediate, also on a login node with a slow file system."""
    assert not modules_loaded_by(*arguments) & HEAVY


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["config", "show"]])
def test_looking_at_a_directory_store_imports_nothing_slow(
    config: Path, arguments: list[str]
) -> None:
    """A configuration has to be validated, but neither science nor cloud libraries are needed."""
    loaded = modules_loaded_by("-c", config, *arguments)
    assert "pydantic" in loaded
    assert not loaded & SLOW


def test_a_dry_run_for_slurm_imports_no_science_and_no_cloud(config: Path) -> None:
    """Scripts are rendered from a template: only jinja2 is needed."""
    loaded = modules_loaded_by(
        "-c", config, "submit", "-g", "1", "--scheduler", "slurm", "--dry-run"
    )
    assert loaded & SLOW == {"jinja2"}


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["run"], ["run", "-g"], ["--frobnicate"], ["run", "-g", "1", "--frobnicate"]],
)
def test_usage_errors_end_with_64(cli: Cli, arguments: list[str]) -> None:
    """Not with click's 2, which a scheduler would not know."""
    ended = cli(*arguments)
    assert ended.code == 64
    assert "Error: " in ended.err


@pytest.mark.parametrize("removed", OPTIONS)
def test_the_error_for_a_removed_option_names_its_replacement(
    cli: Cli, config: Path, removed: str
) -> None:
    verb, option = removed.split()
    ended = cli("-c", config, verb, "-g", "1", option, "x")
    assert ended.code == 64
    said = f"error: mlip-job {verb}: {option} was removed\n  hint: {OPTIONS[removed]}\n"
    assert ended.err == said


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ("0", "generation 0 is not possible"),
        ("-1", "generation -1 is not possible"),
        ("x", "generation 'x' is none of a whole number, next"),
        ("1.5", "generation '1.5' is none of"),
    ],
)
def test_impossible_generations_are_rejected(
    cli: Cli, config: Path, generation: str, message: str
) -> None:
    ended = cli("-c", config, "run", "-g", generation)
    assert ended.code == 64
    assert ended.err.startswith(f"error: {message}")
    assert [path.name for path in config.parent.iterdir()] == ["mlip-job.yaml"]


def test_common_options_stand_before_or_after_the_verb(cli: Cli, config: Path) -> None:
    before = cli("-c", config, "--set", "training.cutoff=6", "config", "show")
    after = cli("config", "show", "-c", config, "--set", "training.cutoff=6")
    both = cli(
        "-c", config, "--set", "training.cutoff=6", "config", "show", "--set", "training.cutoff=7"
    )
    assert before.out == after.out
    assert yaml.safe_load(before.out)["training"]["cutoff"] == 6
    assert yaml.safe_load(both.out)["training"]["cutoff"] == 7


def test_the_environment_names_the_configuration(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-c overrides $MLIP_JOB_CONFIG, which overrides the working directory."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "mlip-job.yaml").write_text("family: here\n")
    monkeypatch.chdir(here)
    assert yaml.safe_load(cli("config", "show").out)["family"] == "here"
    monkeypatch.setenv("MLIP_JOB_CONFIG", str(config))
    assert yaml.safe_load(cli("config", "show").out)["family"] == "cu"
    assert yaml.safe_load(cli("config", "show", "-c", "mlip-job.yaml").out)["family"] == "here"


def test_resolved_configuration_can_be_used_again(cli: Cli, config: Path) -> None:
    """`config show` prints a configuration with the same meaning."""
    shown = cli("-c", config, "config", "show")
    again = config.with_name("again.yaml")
    again.write_text(shown.out)
    assert cli("-c", again, "config", "show").out == shown.out
    assert json.loads(cli("-c", config, "config", "show", "--json").out) == yaml.safe_load(
        shown.out
    )


def test_schema_rejects_unknown_sections(cli: Cli) -> None:
    schema = json.loads(cli("config", "schema").out)
    assert {"family", "database", "training", "submit"} < set(schema["properties"])
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    "verb", ["list", "show", "report", "verify", "pull", "check", "export", "run"]
)
def test_without_configuration_the_next_step_is_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli(verb, *(["-g", "1"] if verb not in ("list", "check") else []))
    assert ended.code == 64
    assert ended.err == (
        "error: no configuration at mlip-job.yaml\n"
        "  hint: mlip-job init writes one, or name it with -c FILE\n"
    )


def test_a_bug_shows_its_traceback_without_secrets(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    from mlip_job.cli.options import Settings

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter3")
    monkeypatch.setattr(Settings, "config", lambda _: {}["a bug: http://u:hunter2@h, hunter3"])
    ended = cli("-c", config, "list")
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert "KeyError: 'a bug: http://***@h, ***'" in ended.err
    assert "hunter" not in ended.err.replace('["a bug: http://u:hunter2@h, hunter3"]', "")


def test_an_empty_family_is_listed_as_such(cli: Cli, config: Path) -> None:
    """An empty list is a result; requesting the latest of none is an error."""
    assert cli("-c", config, "list").out == "no generation of cu is published yet\n"
    listed = json.loads(cli("-c", config, "list", "--json").out)
    assert listed == {"family": "cu", "latest": None, "generations": []}
    ended = cli("-c", config, "show", "-g", "latest")
    assert (ended.code, ended.err) == (64, "error: no generation of cu is published yet\n")


def test_parse_reports_on_any_work_directory(cli: Cli, request: pytest.FixtureRequest) -> None:
    """Exit code 0 also for a failed fit: it was read."""
    data = request.path.parent.parent / "data" / "pacemaker"
    failed = cli("parse", data / "g_nan_forces")
    assert failed.code == 0
    assert failed.out.startswith("failed: forces in the dataset hold NaN")
    ladder = cli("parse", data / "c_ladder")
    assert "succeeded\n" in ladder.out
    assert "179.42" in ladder.out
    assert "3.1: 15 functions, 8 iterations" in ladder.out
    document = json.loads(cli("parse", data / "g_huge_forces", "--json").out)
    assert document["status"] == "failed"
    assert document["exit_code"] == 0
    assert document["test"] is None
    ended = cli("parse", data)
    assert (ended.code, "is no work directory of pacemaker" in ended.err) == (64, True)


def test_packages_of_another_python_are_named(config: Path, tmp_path: Path) -> None:
    """Environment modules set PYTHONPATH; the error says so, without a traceback."""
    package = tmp_path / "module" / "numpy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('numpy of another Python')\n")
    done = subprocess.run(
        [sys.executable, "-m", "mlip_job", "-c", config, "export", "-g", "1"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(package.parent)},
    )
    assert done.returncode == 64
    assert "error: a package can't be imported: numpy of another Python" in done.stderr
    assert "unset PYTHONPATH" in done.stderr
    assert "Traceback" not in done.stderr
