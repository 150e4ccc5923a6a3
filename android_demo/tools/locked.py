"""What the demo is built from and with: pinned in `toolchain.lock` and `dexer.lock`, found by Maven and pip."""

import dataclasses
import hashlib
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

from mobileprune.commands import run_command
from mobileprune.errors import SettingsError

LOCK = Path(__file__).resolve().parents[1] / "toolchain.lock"
ROLES = ("app", "platform", "compiler", "test")
DEXER_LOCK = LOCK.with_name("dexer.lock")
_DEXER = "mobsf/StaticAnalyzer/tools/bundletool-all-1.17.2.jar"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One line of the lock: what Maven calls a file, what it is for, and its SHA-256."""

    group: str
    name: str
    version: str
    type: str
    classifier: str
    roles: tuple[str, ...]
    sha256: str

    @property
    def file(self) -> str:
        """The name that Maven gives it."""
        return f"{self.name}-{self.version}{'-' * bool(self.classifier)}{self.classifier}.{self.type}"


def read_lock(path: Path = LOCK) -> tuple[Artifact, ...]:
    """The artifacts that a lock lists.

    Raises:
        SettingsError: a line that is no artifact, with its number.
    """
    artifacts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        parts = words[0].split(":")
        roles = tuple(words[1].split(",")) if len(words) == 3 else ()
        if not roles or not 3 <= len(parts) <= 5 or not set(roles) <= set(ROLES) or len(words[2]) != 64:
            raise SettingsError(
                f"{path.name}, line {number}: {line.strip()!r} is not group:artifact:version[:type[:classifier]], "
                f"roles among {', '.join(ROLES)}, and a SHA-256."
            )
        group, name, version, kind, classifier = (*parts, "jar", "")[:5] if len(parts) == 3 else (*parts, "")[:5]
        artifacts.append(Artifact(group, name, version, kind, classifier, roles, words[2]))
    return tuple(artifacts)


def fetch(artifacts: Iterable[Artifact], folder: Path) -> dict[Artifact, Path]:
    """Has Maven copy the artifacts to a folder, unless they are there, and compares every hash.

    Raises:
        SettingsError: Maven failed (it says how), or a file is not the one that the lock means.
    """
    files = {artifact: folder / artifact.file for artifact in artifacts}
    missing = [artifact for artifact, file in files.items() if not _is_meant(artifact, file)]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        project = folder / "pom.xml"
        project.write_text(_project(missing), encoding="utf-8")
        command = ["mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", str(project), _COPY]
        run_command([*command, f"-DoutputDirectory={folder}"], "Maven cannot download the demo's parts")
    for artifact in missing:
        if not _is_meant(artifact, files[artifact]):
            found = _digest(files[artifact]) if files[artifact].is_file() else "nothing"
            raise SettingsError(
                f"Maven brought another {artifact.file} than toolchain.lock means: {found} in the place of "
                f"{artifact.sha256}. Do not use it; look at the repository that Maven is set up with."
            )
    return files


def fetch_dexer(folder: Path) -> Path:
    """Has pip download the package with D8 inside, unless that was done, and takes out the jar.

    Raises:
        SettingsError: pip failed (it says how), or the package is not the one that the lock means.
    """
    jar, done = folder / Path(_DEXER).name, folder / "dexer.done"
    pinned = _digest(DEXER_LOCK)
    if jar.is_file() and done.is_file() and done.read_text() == pinned:
        return jar
    with tempfile.TemporaryDirectory(dir=folder) as name:
        # Whatever Python the package is for: none of its code is run.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--ignore-requires-python", "--require-hashes"]
        run_command([*command, "--requirement", str(DEXER_LOCK), "--dest", name], "pip cannot download the dexer")
        (wheel,) = Path(name).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(_DEXER) as source, jar.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    done.write_text(pinned)
    return jar


def _is_meant(artifact: Artifact, file: Path) -> bool:
    return file.is_file() and _digest(file) == artifact.sha256


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _project(artifacts: Iterable[Artifact]) -> str:
    """A Maven project that depends on exactly these, on nothing that they ask for in turn."""
    project = ElementTree.Element("project")
    own = {"modelVersion": "4.0.0", "groupId": "com.mobileprune", "artifactId": "demo", "version": "1"}
    _add(project, {**own, "packaging": "pom"})
    dependencies = ElementTree.SubElement(project, "dependencies")
    for artifact in artifacts:
        dependency = ElementTree.SubElement(dependencies, "dependency")
        _add(dependency, {"groupId": artifact.group, "artifactId": artifact.name, "version": artifact.version})
        _add(dependency, {"type": artifact.type, "classifier": artifact.classifier})
        exclusions = ElementTree.SubElement(dependency, "exclusions")
        _add(ElementTree.SubElement(exclusions, "exclusion"), {"groupId": "*", "artifactId": "*"})
    return ElementTree.tostring(project, encoding="unicode")


def _add(element: ElementTree.Element, texts: Mapping[str, str]) -> None:
    for tag, text in texts.items():
        if text:
            ElementTree.SubElement(element, tag).text = text
