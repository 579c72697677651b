"""Podman and Apptainer, and the images that they build from the real definitions.

Both start from the Debian base of ``tools/make-test-base``; Apptainer from the files of Podman's
image that has the locked packages. Later sessions build only changed layers.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.kernel import require_kernel
from tests.servers.processes import CACHE, PATH

ROOT = Path(__file__).parents[2]
BASE = CACHE / "debian-12.tar"
CPU_IMAGE = "localhost/mlip-job:cpu"

# pip settings that a build needs: how it reaches its index, without paths of this machine.
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
_SOURCES_OF_SIF = (
    "apptainer.def",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "job",
    "requirements",
    "tools",
)


@dataclass(frozen=True)
class Podman:
    """Podman with separate storage."""

    command: tuple[str, ...]
    limits: tuple[str, ...]

    def __call__(self, *arguments: object) -> str:
        return _run([*self.command, *map(str, arguments)])

    def job(self, *options: object, image: str = CPU_IMAGE) -> list[str]:
        """Return the command that runs an image with the rights that Kubernetes grants."""
        return [
            *self.command,
            *("run", "--rm", "--network=host", "--read-only", "--read-only-tmpfs=false"),
            *("--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
            *self.limits,
            *map(str, options),
            image,
        ]


@dataclass(frozen=True)
class Apptainer:
    """Apptainer, run as an unprivileged user."""

    command: tuple[str, ...]

    def __call__(self, *arguments: object, cwd: Path = ROOT) -> str:
        return _run([*self.command, *map(str, arguments)], cwd=cwd)


@pytest.fixture(scope="session")
def podman() -> Podman:
    _require("podman", "runc")
    if os.getuid() != 0:
        pytest.skip("Podman is set up for root here: run the tests as root")
    require_kernel("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--", "true")
    return Podman(
        (
            *("podman", "--root", str(CACHE / "containers"), "--runroot", "/run/mlip-job-tests"),
            # Not every test machine has systemd or a journal.
            *("--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc"),
        ),
        # Podman's default limits are higher than root may set without CAP_SYS_RESOURCE.
        ("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"),
    )


@pytest.fixture(scope="session")
def base_image(podman: Podman) -> str:
    if not BASE.exists():
        pytest.skip("there is no base to build images from: make servers makes it")
    name = f"localhost/debian:12-{BASE.stat().st_mtime_ns}"
    with _alone("podman"):
        if name not in podman("images", "--format={{.Repository}}:{{.Tag}}").split():
            podman("import", "--quiet", BASE, name)
    return name


@pytest.fixture(scope="session")
def pip_settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pip")
    found = dict(re.findall(r"^\S*\.(\S+?)=(.*)$", _run(_pip("config", "list")), re.MULTILINE))
    lines = [f"{key} = {ast.literal_eval(found[key])}" for key in _PIP_SETTINGS if key in found]
    (directory / "pip.conf").write_text("\n".join(("[global]", *lines, "")))
    bundle = Path(ast.literal_eval(found.get("cert", "'/etc/ssl/certs/ca-certificates.crt'")))
    (directory / "ca.crt").write_bytes(bundle.read_bytes() if bundle.exists() else b"")
    return directory


@pytest.fixture(scope="session")
def cpu_image(podman: Podman, base_image: str, pip_settings: Path) -> str:
    return _build(podman, "cpu", base_image, pip_settings)


def _build(podman: Podman, target: str, base_image: str, pip_settings: Path) -> str:
    tag = f"localhost/mlip-job:{target}"
    with _alone("podman"):
        podman(
            *("build", "--quiet", "--isolation=chroot", "--network=host", f"--target={target}"),
            *("--build-arg", f"BASE={base_image}", "--build-arg", "VERSION=test"),
            *("--secret", f"id=pip,src={pip_settings / 'pip.conf'}"),
            *("--secret", f"id=ca,src={pip_settings / 'ca.crt'}"),
            *("--tag", tag, ROOT),
        )
        podman("image", "prune", "--force", "--filter=until=24h")
    return tag


@contextmanager
def _mounted(podman: Podman, image: str, directory: Path) -> Iterator[Path]:
    """Mount the files of an image: Apptainer copies them, faster than it unpacks an archive."""
    container = podman("create", image, "true").strip()
    try:
        files = podman("mount", container).strip()
        # Apptainer's user can make neither devices nor files of the group of /etc/shadow.
        others = ("(", "!", "-uid", "0", "-o", "!", "-gid", "0", ")")
        _run(["find", files, *others, "-exec", "chown", "-h", "0:0", "{}", "+"])
        _run(["find", f"{files}/dev", "-mindepth", "1", "-delete"])
        # Apptainer does not see root's home, where Podman has the files.
        _run(["mount", "--bind", files, str(directory)])
        try:
            yield directory
        finally:
            _run(["umount", str(directory)])
    finally:
        podman("rm", "--force", container)


@pytest.fixture(scope="session")
def apptainer(tmp_path_factory: pytest.TempPathFactory) -> Apptainer:
    program = shutil.which("apptainer") or CACHE / "apptainer/usr/bin/apptainer"
    if not Path(program).exists():
        pytest.skip("Apptainer is not installed: make servers installs it")
    _require("mksquashfs", "squashfuse")
    require_kernel("unshare", "--user", "--mount", "--map-root-user", "--", "true")
    home = tmp_path_factory.mktemp("apptainer")
    # Root may lack rights that Apptainer expects, and no user of a cluster is root.
    plain = ("unshare", "--user", "--map-user=65534", "--map-group=65534", "--")
    environment = ("env", f"HOME={home}", f"APPTAINER_CACHEDIR={home}", f"APPTAINER_TMPDIR={home}")
    return Apptainer((*(plain if os.getuid() == 0 else ()), *environment, str(program)))


@pytest.fixture
def base_files(
    podman: Podman, base_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    with _mounted(podman, base_image, tmp_path_factory.mktemp("base")) as files:
        yield files


@pytest.fixture(scope="session")
def trainer_files(
    podman: Podman, base_image: str, pip_settings: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Mount a base with the locked packages: pip finds them installed and takes seconds."""
    image = _build(podman, "trainer-cpu", base_image, pip_settings)
    with _mounted(podman, image, tmp_path_factory.mktemp("trainer")) as files:
        yield files


@pytest.fixture(scope="session")
def sif(
    apptainer: Apptainer,
    request: pytest.FixtureRequest,
    pip_settings: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    image = CACHE / f"mlip-job-{_hash_of_sources()}.sif"
    with _alone("apptainer"):
        if not image.exists():
            for old in CACHE.glob("mlip-job-*.sif"):
                old.unlink()
            # A build does not see root's home.
            built = tmp_path_factory.mktemp("sif") / image.name
            base = request.getfixturevalue("trainer_files")
            apptainer(*build_options(base, pip_settings), built, "apptainer.def")
            shutil.move(built, image)
    return image


def build_options(base_files: Path, pip_settings: Path) -> Sequence[object]:
    """Return Apptainer's build options here; compression is fast instead of small.

    The self-test is left out: the tests run jobs in the image, and Podman's image has the same.
    """
    return (
        *("build", "--notest", "--build-arg", "bootstrap=localimage"),
        *("--build-arg", f"base={base_files}", "--build-arg", "version=test"),
        *("--bind", f"{pip_settings}:/mnt"),
        *("--mksquashfs-args", "-comp zstd -Xcompression-level 1"),
    )


@contextmanager
def _alone(what: str) -> Iterator[None]:
    with (CACHE / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _hash_of_sources() -> str:
    total = hashlib.sha256(str(BASE.stat().st_mtime_ns).encode())
    for name in _SOURCES_OF_SIF:
        top = ROOT / name
        files = [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file())
        for path in files:
            if "__pycache__" not in path.parts:
                total.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return total.hexdigest()[:16]


def _require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is not installed: make servers installs it")


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", *arguments]


def _run(command: Sequence[str], cwd: Path = ROOT) -> str:
    done = subprocess.run(
        command, check=False, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{last}")
    return done.stdout
