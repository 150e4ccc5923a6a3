"""Builds the demo's APK with Debian's tools and pinned parts, without Gradle and without Android's SDK.

`make apk` calls `python android_demo/tools/build_apk.py apk`, `make apk-test` the same with `test`. The packages of the
system that it wants are in `apt-packages.txt`; everything else is in `toolchain.lock` and `dexer.lock`.
"""

import argparse
import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import locked

from mobileprune.commands import run_command
from mobileprune.errors import MobilePruneError, SettingsError

DEMO = Path(__file__).resolve().parents[1]
BUILD = DEMO / "build"
APK = BUILD / "mobileprune-demo.apk"
PACKAGE = "com.mobileprune.demo"
ABIS = ("arm64-v8a", "x86_64")
MIN_SDK, TARGET_SDK = "24", "34"
VERSION_CODE, VERSION_NAME = "1", "0.1.0"
_PROGRAMS = {
    "aapt2": "aapt",
    "apksigner": "apksigner",
    "java": "default-jdk-headless",
    "javac": "default-jdk-headless",
    "keytool": "default-jdk-headless",
    "mvn": "maven",
    "zipalign": "zipalign",
}
_KOTLIN = ("-jvm-target", "1.8", "-no-stdlib", "-no-reflect", "-Werror", "-progressive")


class Build:
    """One build: the parts that it uses, and its steps."""

    def __init__(self) -> None:
        self.parts = locked.fetch(locked.read_lock(), BUILD / "libs")

    def jars(self, role: str) -> list[Path]:
        """The jars of a role; of an AAR the one inside it."""
        return [self._classes_of(artifact, file) for artifact, file in self.parts.items() if role in artifact.roles]

    def _classes_of(self, artifact: locked.Artifact, file: Path) -> Path:
        if artifact.type != "aar":
            return file
        jar = BUILD / "libs" / f"{artifact.name}-{artifact.version}-classes.jar"
        with zipfile.ZipFile(file) as archive:
            _write_if_new(jar, archive.read("classes.jar"))
        return jar

    def resources(self) -> tuple[Path, Path]:
        """Resources, manifest and assets as an APK without code, and the R class for the compiler."""
        base, sources = BUILD / "resources.apk", BUILD / "generated"
        inputs = [DEMO / "src/main/AndroidManifest.xml", *_below(DEMO / "src/main/res"), *_below(_ASSETS)]

        def work() -> None:
            compiled = BUILD / "resources.zip"
            run_command(["aapt2", "compile", "--dir", str(DEMO / "src/main/res"), "-o", str(compiled)], "aapt2 failed")
            shutil.rmtree(sources, ignore_errors=True)
            command = ["aapt2", "link", "-o", str(base), "-I", str(self.jars("platform")[0]), "-A", str(_ASSETS)]
            command += ["--manifest", str(_manifest()), "--java", str(sources)]
            command += ["--min-sdk-version", MIN_SDK, "--target-sdk-version", TARGET_SDK]
            command += ["--version-code", VERSION_CODE, "--version-name", VERSION_NAME]
            # Mapped into memory as they lie in the APK.
            command += ["-0", ".tflite", str(compiled)]
            run_command(command, "aapt2 cannot link the resources")

        _step("resources", inputs, [base], work)
        return base, sources

    def classes(self) -> Path:
        """The app's own classes, and R."""
        folder = BUILD / "classes"
        _, generated = self.resources()
        sources = [*_below(DEMO / "src/main/kotlin"), *_below(generated)]
        jars = [*self.jars("app"), *self.jars("platform")]

        def work() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            # Of java.* what Android 7 has is near Java 8; what came later must not compile.
            self._kotlin(sources, jars, folder, "-Xjdk-release=1.8", "-module-name", "demo")
            java = [str(path) for path in _below(generated)]
            command = ["javac", "-nowarn", "--release", "8", "-Xlint:-options", "-d", str(folder)]
            run_command([*command, *java], "javac cannot compile R.java")

        _step("classes", sources, [folder], work)
        return folder

    def _kotlin(self, sources: Iterable[Path], jars: Iterable[Path], into: Path, *options: str) -> None:
        compiler = os.pathsep.join(map(str, self.jars("compiler")))
        command = ["java", "-Xmx1500m", "-cp", compiler, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"]
        command += [*_KOTLIN, *options, "-classpath", os.pathsep.join(map(str, jars)), "-d", str(into)]
        run_command([*command, *map(str, sources)], "Kotlin does not compile")

    def dex(self) -> Path:
        """All code of the APK in Dalvik's format."""
        dex = BUILD / "classes.dex"
        classes = self.classes()

        def work() -> None:
            every, java_home = BUILD / "dexed.jar", Path(shutil.which("javac") or "").resolve().parents[1]
            with zipfile.ZipFile(every, "w") as archive:
                for path in _below(classes):
                    archive.write(path, path.relative_to(classes))
            dexer = locked.fetch_dexer(BUILD / "libs")
            command = ["java", "-Xmx1500m", "-cp", str(dexer), "com.android.tools.r8.D8", "--release"]
            # Of Android's classes the platform has all but java.*, which are known from this machine.
            command += ["--min-api", MIN_SDK, "--lib", str(java_home), "--lib", str(self.jars("platform")[0])]
            run_command([*command, "--output", str(BUILD), str(every), *map(str, self.jars("app"))], "D8 failed")

        _step("dex", [locked.DEXER_LOCK, *_below(classes)], [dex], work)
        return dex

    def apk(self) -> Path:
        """The signed APK."""
        base, dex = self.resources()[0], self.dex()
        natives = [file for artifact, file in self.parts.items() if artifact.type == "aar"]

        def work() -> None:
            unaligned, aligned = BUILD / "unaligned.apk", BUILD / "aligned.apk"
            shutil.copyfile(base, unaligned)
            with zipfile.ZipFile(unaligned, "a") as archive:
                archive.write(dex, "classes.dex", zipfile.ZIP_DEFLATED)
                for path in natives:
                    _add_natives(path, archive)
            run_command(["zipalign", "-f", "-p", "4", str(unaligned), str(aligned)], "zipalign failed")
            command = ["apksigner", "sign", "--ks", str(_debug_key()), "--ks-pass", f"pass:{_PASSWORD}"]
            command += ["--min-sdk-version", MIN_SDK, "--out", str(APK), str(aligned)]
            run_command(command, "apksigner cannot sign")
            run_command(["apksigner", "verify", str(APK)], "The APK's signature does not verify")

        _step("apk", [base, dex], [APK], work)
        return APK

    def test(self) -> str:
        """Runs the JVM tests: the logic, and inference on a desktop build of the same Java interface.

        Returns:
            What the runner printed.
        """
        folder, natives = BUILD / "test-classes", BUILD / "natives"
        logic = DEMO / "src/main/kotlin/com/mobileprune/demo"
        # No activities: they are for Android, and the desktop runtime's interface is an older one.
        sources = [*_below(logic / "core"), *_below(logic / "engine")]
        sources += [*_below(DEMO / "src/test/kotlin"), *_below(DEMO / "src/desktop/kotlin")]
        stdlib = [jar for jar in self.jars("app") if jar.name.startswith("kotlin-stdlib")]
        jars = [*self.jars("test"), *stdlib, self._json()]

        def work() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            self._kotlin(sources, jars, folder, "-module-name", "tests")

        _step("test-classes", sources, [folder], work)
        natives.mkdir(exist_ok=True)
        for jar in self.jars("test"):
            with zipfile.ZipFile(jar) as archive:
                for name in archive.namelist():
                    if name.endswith(".so"):
                        _write_if_new(natives / Path(name).name, archive.read(name))
        path = [folder, DEMO / "src/test/resources", *jars]
        suites = sorted(source.relative_to(root) for root in _TESTS for source in root.rglob("*Test.kt"))
        names = [".".join(suite.with_suffix("").parts) for suite in suites]
        command = ["java", f"-Djava.library.path={natives}", f"-Dassets={_ASSETS}"]
        command += ["-cp", os.pathsep.join(map(str, path)), "org.junit.runner.JUnitCore"]
        done = subprocess.run([*command, *names], capture_output=True, text=True)
        if done.returncode:
            raise SettingsError(f"JVM tests failed:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def _json(self) -> Path:
        """Android's own `org.json`, taken out of the platform: the rest of that would get in the JVM's way."""
        jar = BUILD / "libs" / "android-json.jar"
        with zipfile.ZipFile(self.jars("platform")[0]) as platform:
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w") as made:
                for info in platform.infolist():
                    if info.filename.startswith("org/json/") and info.filename.endswith(".class"):
                        made.writestr(zipfile.ZipInfo(info.filename), platform.read(info))
        _write_if_new(jar, stream.getvalue())
        return jar


_ASSETS = DEMO / "src/main/assets"
_TESTS = (DEMO / "src/test/kotlin", DEMO / "src/desktop/kotlin")
# Debug keys are no secret: anybody may sign with one, and nobody trusts it.
_PASSWORD = "android"


def _manifest() -> Path:
    """The manifest with what Gradle has in its own file and does not want in this one."""
    text = (DEMO / "src/main/AndroidManifest.xml").read_text(encoding="utf-8")
    for element, attribute in (
        ("manifest", f'package="{PACKAGE}"'),
        ("application", 'android:extractNativeLibs="false"'),
    ):
        text = text.replace(f"<{element}", f"<{element} {attribute}", 1)
    made = BUILD / "AndroidManifest.xml"
    made.write_text(text, encoding="utf-8")
    return made


def _debug_key() -> Path:
    """A key for signing, made on the spot the first time: an update must have the key of what it replaces."""
    store = BUILD / "debug.keystore"
    if not store.exists():
        command = ["keytool", "-genkeypair", "-keystore", str(store), "-storepass", _PASSWORD, "-keypass", _PASSWORD]
        command += ["-alias", "debug", "-keyalg", "RSA", "-keysize", "2048", "-validity", "10000"]
        run_command([*command, "-dname", "CN=mobileprune demo debug key"], "keytool cannot make a key")
    return store


def _add_natives(aar: Path, apk: zipfile.ZipFile) -> None:
    with zipfile.ZipFile(aar) as archive:
        for name in archive.namelist():
            parts = name.split("/")
            if parts[0] == "jni" and len(parts) == 3 and parts[1] in ABIS:
                # Stored, so that Android can run it where it lies.
                apk.writestr(f"lib/{parts[1]}/{parts[2]}", archive.read(name), zipfile.ZIP_STORED)


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_if_new(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)


def _step(name: str, inputs: Iterable[Path], outputs: Iterable[Path], work: Callable[[], None]) -> None:
    """Does a step unless it was done with the same inputs, by the same program, with the same pinned parts."""
    digest = hashlib.sha256()
    for path in (Path(__file__), locked.LOCK, *inputs):
        digest.update(str(path).encode() + b"\0" + path.read_bytes())
    done = BUILD / f"{name}.done"
    if done.is_file() and done.read_text() == digest.hexdigest() and all(path.exists() for path in outputs):
        return
    done.unlink(missing_ok=True)
    work()
    done.write_text(digest.hexdigest())


def missing_programs() -> str | None:
    """Which programs are not installed, in one sentence with the way out; None if all are."""
    packages = sorted({package for program, package in _PROGRAMS.items() if shutil.which(program) is None})
    if not packages:
        return None
    return (
        f"The demo cannot be built: install Debian's {', '.join(packages)} (all are in android_demo/apt-packages.txt)."
    )


def main() -> None:
    """The command behind `make apk` and `make apk-test`."""
    parser = argparse.ArgumentParser(description="Builds or tests the Android demo.")
    parser.add_argument("what", choices=("apk", "test"))
    what = parser.parse_args().what
    try:
        if reason := missing_programs():
            raise SettingsError(reason)
        BUILD.mkdir(exist_ok=True)
        build = Build()
        if what == "apk":
            apk = build.apk()
            print(f"{apk.relative_to(DEMO.parent)}: {apk.stat().st_size:,} bytes, signed with a debug key.")
        else:
            print(build.test())
    except (MobilePruneError, OSError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
