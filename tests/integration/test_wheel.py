"""The built wheel works in an empty environment, with the locked libraries and no trainer."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def test_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    """It has templates and types, and its command line starts without pacemaker."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = ROOT / "job" / "mlip_job"
    templates = [path for path in sources.rglob("templates/*") if path.is_file()]
    wanted = [path.relative_to(sources.parent).as_posix() for path in templates]
    assert wanted
    assert set(wanted) | {"mlip_job/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)

    empty = tmp_path / "empty"
    python = empty / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", empty], check=True)
    install = [BIN / "uv", "pip", "install", "--quiet", "--python", python, "--no-deps"]
    lock = ROOT / "requirements" / "core.txt"
    subprocess.run([*install, "--require-hashes", "--no-build", "-r", lock], check=True)
    subprocess.run([*install, wheel], check=True)

    program = empty / "bin" / "mlip-job"
    for arguments, expected in (
        (["--help"], "Usage: mlip-job"),
        (["config", "--help"], "schema"),
        (["config", "schema"], '"TrainingConfig"'),
        (["--version"], "mlip-job"),
    ):
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    missing = subprocess.run([python, "-c", "import pyace"], capture_output=True, check=False)
    assert missing.returncode != 0
