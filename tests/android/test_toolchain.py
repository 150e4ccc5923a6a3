"""What the demo is built from is pinned, and nothing else is used."""

import hashlib
import re

import locked
import pytest
from smoke_run import ROOT

from mobileprune.errors import SettingsError

DEMO = ROOT / "android_demo"
LINE = "some.group:name:1.0 app " + "0" * 64


def test_the_lock_has_everything_once_and_names_no_repository():
    artifacts = locked.read_lock()
    assert {role for artifact in artifacts for role in artifact.roles} == set(locked.ROLES)
    assert len({artifact.file for artifact in artifacts}) == len(artifacts)
    assert not re.search(r"://|\.com/|\.org/", locked.LOCK.read_text())


@pytest.mark.parametrize(
    "line",
    [
        "some.group:name app " + "0" * 64,
        LINE.replace("app", "appp"),
        LINE[:-1],
        LINE + " more",
        "a:b:c:d:e:f app " + "0" * 64,
    ],
)
def test_a_line_that_is_no_artifact_is_named(tmp_path, line):
    lock = tmp_path / "a.lock"
    lock.write_text(f"# comment\n{LINE}\n{line}\n")
    with pytest.raises(SettingsError, match=r"a\.lock, line 3"):
        locked.read_lock(lock)


def test_types_and_classifiers_are_read(tmp_path):
    lock = tmp_path / "a.lock"
    lock.write_text(f"{LINE}\n{LINE.replace('1.0', '1.0:aar')}\n{LINE.replace('1.0', '1.0:jar:linux')}\n")
    assert [each.file for each in locked.read_lock(lock)] == ["name-1.0.jar", "name-1.0.aar", "name-1.0-linux.jar"]


def an_artifact(content=b"right"):
    digest = hashlib.sha256(content).hexdigest()
    return locked.Artifact("some.group", "name", "1.0", "jar", "", ("app",), digest)


def test_what_is_there_with_the_right_hash_is_not_downloaded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(locked, "run_command", lambda *_: pytest.fail("something was downloaded"))
    (tmp_path / "name-1.0.jar").write_bytes(b"right")
    artifact = an_artifact()
    assert locked.fetch([artifact], tmp_path) == {artifact: tmp_path / "name-1.0.jar"}


@pytest.mark.parametrize("brought", [b"wrong", None])
def test_another_file_than_the_lock_means_is_refused(tmp_path, monkeypatch, brought):
    def bring(command, failure):
        assert "--strict-checksums" in command
        if brought is not None:
            (tmp_path / "name-1.0.jar").write_bytes(brought)

    monkeypatch.setattr(locked, "run_command", bring)
    with pytest.raises(SettingsError, match=r"another name-1\.0\.jar than toolchain\.lock means"):
        locked.fetch([an_artifact()], tmp_path)


def test_gradle_and_the_lock_agree_on_versions():
    catalog = (DEMO / "gradle" / "libs.versions.toml").read_text()
    versions = {artifact.name: artifact.version for artifact in locked.read_lock()}
    assert f'kotlin = "{versions["kotlin-stdlib"]}"' in catalog
    assert f'junit = "{versions["junit"]}"' in catalog


def test_continuous_integration_installs_the_one_list():
    packages = (DEMO / "apt-packages.txt").read_text().split()
    assert packages == sorted(packages)
    assert "android_demo/apt-packages.txt" in (ROOT / ".ci" / "run").read_text()
