"""No setting accepts a secret or a control character, and no output shows one."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlip_job.config import JobConfig, load_config
from mlip_job.config.fields import Part
from mlip_job.config.load import validate_config
from mlip_job.errors import ConfigError
from mlip_job.schedulers.records import SubmitFiles
from mlip_job.secret_texts import is_secret_variable, redact, secret_in
from mlip_job.yaml_text import YamlError, load_yaml
from tests.cli import Ended

FORMS = (
    "postgresql://u:hunter2@h/d",
    "postgresql://u:hun/ter2@h/d",
    "postgresql://u:hun@ter2@h/d",
    "postgresql://u:hun?ter2@h/d",
    "postgresql://u:hun#ter2@h/d",
    "postgresql://u:hun:ter2@h/d",
    "postgresql://:hunter2@h/d",
    "postgresql://u%3Ahunter2@h/d",
    "postgresql://u@h/d?password=hunter2",
    "postgresql://u@h/d?sslmode=require&sslpassword=hunter2",
    "postgresql://u@h/d?p%61ssword=hunter2",
    "//u:hunter2@h/d",
    "https://h/x?jwt=hunter2",
    "https://h/x?token=hunter2",
    "https://h/x#access_token=hunter2",
    "https://h/x?X-Amz-Signature=hunter2",
    "https://h/x?X-Amz-Credential=hunter2",
    "https://h/x?sv=1&sig=hunter2",
    "https://h/x?key=hunter2",
    "https://h/x?accountKey=hunter2",
    "https://hunter2@h/",
    "s3://hunter2@bucket/prefix",
    "u:hunter2@proxy:3128",
    "docker://u:hunter2@registry/image@sha256:0000",
    "host=h user=u password=hunter2",
    "host=h user=u password = 'hunter2'",
    "export AWS_SECRET_ACCESS_KEY=hunter2",
    "export MYSQL_PWD=hunter2",
    "--docker-password hunter2",
    '{"url": "postgresql://u:hunter2@h/d"}',
    '{"password": "hunter2"}',
    "curl https://u:hunter2@h/x && true",
    "AKIAHUNTER2HUNTER2AB",
    "-----BEGIN RSA PRIVATE KEY----- hunter2",
    "Authorization: Bearer hunter2hunter2hunter2",
)
HARMLESS = (
    "postgresql://user@host:5432/name",
    "postgresql://user@h1:5432,h2:5432/db?sslmode=verify-full&sslrootcert=/ca&sslkey=/k",
    "postgresql://u@h/d?passfile=/home/u/.pgpass&require_auth=scram-sha-256",
    "postgresql://user%40corp@host/db",
    "mysql://user:@host:3306/name",
    "s3://bucket/prefix",
    "http://host:5000/#/experiments/3",
    "registry.example:5000/team/mlip-job:1.0@sha256:0123456789abcdef",
    "docker://registry.example:5000/team/mlip-job@sha256:0123456789abcdef",
    "status=completed,generation<={generation}",
    "natoms<100,key=3,sig>2",
    "export PGPASSWORD=$(cat ~/.pw)",
    "export TOKENIZERS_PARALLELISM=false",
    "/data:/data:ro",
    "mailto:me@example.org",
    "--token-file=/run/t",
    "abfss://container@account.dfs.core.windows.net/x",
    "the password is taken from the environment",
)
LEAKED = ("hunter2", "ter2", "hun/", "HUNTER2")


def settings(model: type[Part], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Part):
            yield from settings(inner, (*path, name))
        else:
            yield (*path, name)


def planted(path: tuple[str, ...], value: object) -> dict[str, object]:
    for name in reversed(path):
        value = {name: value}
    assert isinstance(value, dict)
    return {"family": "cu", **value}


@pytest.mark.parametrize("path", list(settings(JobConfig)), ids=".".join)
def test_no_setting_accepts_a_secret(path: tuple[str, ...]) -> None:
    """Alone, in a list, or in a mapping; the error names the key and not the value."""
    shapes = itertools.cycle(
        (
            lambda form: form,
            lambda form: [form],
            lambda form: {"a": form},
            lambda form: [{"a": {"b": form}}],
            lambda form: {form: "a"},
        )
    )
    values = [shape(form) for form, shape in zip(FORMS, shapes, strict=False)]
    for value in (*values, {"password": "hunter2"}, [{"name": "PGPASSWORD", "value": "hunter2"}]):
        with pytest.raises(ConfigError) as refused:
            validate_config(planted(path, value), source="test")
        text = str(refused.value)
        assert f"{'.'.join(path)}: " in text
        assert "secret" in text
        assert not any(part in text for part in LEAKED)


@pytest.mark.parametrize("path", list(settings(JobConfig)), ids=".".join)
def test_no_setting_accepts_a_control_character(path: tuple[str, ...]) -> None:
    """It would be another line of a script, a manifest or a log."""
    for character in "\n\r\t\0\x7f\x85\u2028\u2029":
        shape = {f"a{character}": "b"} if character == "\r" else f"a{character}b"
        with pytest.raises(ConfigError, match=rf"{'.'.join(path)}: .*one line of printable") as one:
            validate_config(planted(path, shape), source="test")
        assert character == "\n" or character not in str(one.value)


@pytest.mark.parametrize("form", FORMS)
def test_messages_are_printed_without_secrets(form: str) -> None:
    assert secret_in(form) is not None
    printed = redact(f"can't open {form}", environment={})
    assert not any(part in printed for part in LEAKED)


@pytest.mark.parametrize("text", HARMLESS)
def test_values_without_secrets_are_accepted(text: str) -> None:
    """Names of users, key files, ports, digests, references to variables."""
    assert secret_in(text) is None


def test_variables_are_secret_by_the_end_of_their_name() -> None:
    private = (
        "AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID AWS_SESSION_TOKEN PGPASSWORD MYSQL_PWD HF_TOKEN "
        "WANDB_API_KEY MY_CREDENTIALS PASSWORD2 DB_PASS GH_KEY apiKey"
    )
    plain = (
        "PWD OLDPWD PGPASSFILE GOOGLE_APPLICATION_CREDENTIALS AWS_WEB_IDENTITY_TOKEN_FILE "
        "TOKENIZERS_PARALLELISM SSH_AUTH_SOCK HTTPS_PROXY PGSSLKEY OMP_NUM_THREADS"
    )
    assert all(map(is_secret_variable, private.split()))
    assert not any(map(is_secret_variable, plain.split()))


def test_values_of_secret_variables_are_redacted() -> None:
    environment = {"PGPASSWORD": "p@ss/word", "HOME": "/root"}
    text = redact("p@ss/word, p%40ss%2Fword in /root", environment=environment)
    assert text == "***, *** in /root"


def test_an_error_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "mlip-job.yaml"
    path.write_text("family: cu\ndatabase:\n  url: postgresql://u:hunter2@h/d\n")
    url = "https://h?token=hunter2"
    for assignments, environment, place in (
        ([], {}, r"database\.url: .*\(line 3\)"),
        ([], {"MLIP_JOB__STORAGE__URL": url}, r"storage\.url: .*\(MLIP_JOB__STORAGE__URL\)"),
        ([], {"MLIP_JOB__STORAGE": f'{{"url": "{url}"}}'}, r"url: .*\(MLIP_JOB__STORAGE\)"),
        ([f"tracking.mlflow_uri={url}"], {}, r"tracking\.mlflow_uri: .*\(--set\)"),
    ):
        with pytest.raises(ConfigError, match=place) as refused:
            load_config(path, assignments=assignments, environment=environment)
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        "password: hunter2: x",
        "password: 'hunter2",
        "password: *hunter2",
        "password: !hunter2 x",
        "password: [hunter2",
        "password: @hunter2",
        "password: !x!hunter2 b",
        "password: !!binary hunter2é",
        "password: 2024-13-45",
    ],
)
def test_a_syntax_error_does_not_repeat_the_line(
    cli: Callable[..., Ended], tmp_path: Path, line: str
) -> None:
    """It has file, line and column, or the wrong type of value."""
    path = tmp_path / "mlip-job.yaml"
    path.write_text(f"family: cu\n{line}\n")
    ended = cli("-c", path, "config", "show")
    assert ended.code == 64
    assert str(path) in ended.err
    assert "hunter2" not in ended.out + ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("config", "show", "--set", "database.url:postgresql://u:hunter2@h/d"),
        ("config", "show", "--set", "postgresql://u:hunter2@h/d?x=1"),
        ("config", "show", "postgresql://u:hunter2@h/d"),
        ("init", "a.db", "--storage", "s3://u:hunter2@bucket"),
        ("init", "postgresql://u@h/d?password=hunter2"),
        ("status", "-g", "https://u:hunter2@h"),
    ],
)
def test_the_command_line_is_not_repeated(
    cli: Callable[..., Ended], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "mlip-job.yaml"
    path.write_text("family: cu\n")
    ended = cli("-c", path, *arguments)
    assert ended.code == 64
    assert "hunter2" not in ended.out + ended.err


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 200_000, "nested"),
        ("- " * 200_000, "nested"),
        ("{a: " * 3000, "nested"),
        (BOMB, "too many values"),
        ("a: &a [*a]", "an alias stands inside"),
    ],
    ids=["flow", "block", "mappings", "aliases", "recursion"],
)
def test_yaml_is_bounded(
    cli: Callable[..., Ended], tmp_path: Path, text: str, problem: str
) -> None:
    """In a file, a variable and --set; PyYAML would fail with a traceback or a crash."""
    with pytest.raises(YamlError, match=problem):
        load_yaml(text)
    path = tmp_path / "mlip-job.yaml"
    path.write_text(text)
    ended = cli("-c", path, "config", "show")
    assert ended.code == 64
    assert problem in ended.err
    path.write_text("family: cu\n")
    assert cli("-c", path, "config", "show", "--set", f"training.overrides={text}").code == 64
    deep = f"training.overrides.{'a.' * 5000}b=1"
    assert cli("-c", path, "config", "show", "--set", deep).code == 64


def test_a_large_file_is_no_configuration(cli: Callable[..., Ended], tmp_path: Path) -> None:
    path = tmp_path / "mlip-job.yaml"
    path.write_text("#" * (1 << 20) + "\nfamily: cu\n")
    ended = cli("-c", path, "config", "show")
    assert (ended.code, "larger than 1 MiB" in ended.err) == (64, True)


def test_a_directory_with_a_line_break_is_rejected(tmp_path: Path) -> None:
    """Relative paths of the configuration would pass it on to scripts."""
    directory = tmp_path / "a\nb"
    directory.mkdir()
    (directory / "mlip-job.yaml").write_text("family: cu\n")
    with pytest.raises(ConfigError, match="rename the directory"):
        load_config(directory / "mlip-job.yaml", environment={})


def test_files_of_a_submission_are_private(tmp_path: Path) -> None:
    """Whatever the umask; an existing directory is not changed."""
    tmp_path.chmod(0o755)
    config = JobConfig(family="cu", work_dir=str(tmp_path / "deep" / "work"))
    files = SubmitFiles.of(config, 4)
    script = files.write("sh", "true\n", config)
    for directory in (files.directory, tmp_path / "deep" / "work", tmp_path / "deep"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for file in (files.config, script):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
