"""The APK that `make apk` built: what is in it, whether Android will take it, and whether its files answer rightly."""

import re
import shutil
import subprocess
import zipfile

import build_apk
import pytest
from smoke_run import ROOT
from test_ship import needs_runtime

from mobileprune.ship import check_shipped

SOURCES = [path for path in (build_apk.DEMO / "src" / "main").rglob("*") if path.is_file()]


def reason():
    if missing := build_apk.missing_programs():
        return missing
    if not build_apk.APK.is_file():
        return "The demo is not built: run `make apk`."
    newest = max(SOURCES, key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > build_apk.APK.stat().st_mtime:
        return f"{newest.name} is newer than the demo: run `make apk`."
    return "" if shutil.which("dexdump") else "dexdump is not installed."


pytestmark = pytest.mark.skipif(bool(reason()), reason=reason())


def said_by(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def badging():
    return said_by("aapt2", "dump", "badging", build_apk.APK)


@pytest.fixture(scope="module")
def files():
    with zipfile.ZipFile(build_apk.APK) as archive:
        return {info.filename: info for info in archive.infolist()}


def test_it_is_for_android_7_on_two_processors(badging):
    assert f"package: name='{build_apk.PACKAGE}'" in badging
    assert "sdkVersion:'24'" in badging
    assert "targetSdkVersion:'34'" in badging
    assert "native-code: 'arm64-v8a' 'x86_64'" in badging
    assert f"launchable-activity: name='{build_apk.PACKAGE}.ClassifyActivity'" in badging


def test_it_asks_for_the_camera_and_nothing_else_and_needs_none(badging):
    assert re.findall(r"uses-permission: name='(.*?)'", badging) == ["android.permission.CAMERA"]
    assert "uses-feature-not-required: name='android.hardware.camera.any'" in badging
    assert "application-debuggable" not in badging


def test_computers_can_start_the_headless_activity():
    tree = said_by("aapt2", "dump", "xmltree", build_apk.APK, "--file", "AndroidManifest.xml")
    activities = re.findall(r"E: activity.*?(?=E: activity|\Z)", tree, re.DOTALL)
    exported = {re.search(r':name\(\w+\)="(.*?)"', each)[1]: "exported(0x01010010)=true" in each for each in activities}
    assert exported == {
        f".{name}Activity": name in ("Classify", "Headless")
        for name in ("Classify", "Models", "Benchmark", "About", "Headless")
    }


def test_it_is_small_and_signed():
    assert build_apk.APK.stat().st_size < 20_000_000
    said = said_by("apksigner", "verify", "--verbose", "--print-certs", "--min-sdk-version", 24, build_apk.APK)
    assert "Verified using v2 scheme (APK Signature Scheme v2): true" in said
    assert "CN=mobileprune demo debug key" in said


def test_a_changed_byte_breaks_the_signature(tmp_path):
    broken = tmp_path / "broken.apk"
    content = bytearray(build_apk.APK.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    assert subprocess.run(["apksigner", "verify", broken], capture_output=True, timeout=120).returncode


def test_libraries_and_models_lie_uncompressed_where_they_can_be_mapped(files):
    said_by("zipalign", "-c", "-p", "4", build_apk.APK)
    mapped = [name for name in files if name.endswith((".so", ".tflite"))]
    assert len([name for name in mapped if name.endswith(".tflite")]) >= 2
    assert [name for name in mapped if files[name].compress_type != zipfile.ZIP_STORED] == []


def test_it_carries_the_real_native_runtime(files):
    for artifact in build_apk.locked.read_lock():
        if artifact.name != "tensorflow-lite":
            continue
        with zipfile.ZipFile(build_apk.BUILD / "libs" / artifact.file) as aar, zipfile.ZipFile(build_apk.APK) as apk:
            for abi in build_apk.ABIS:
                library = "libtensorflowlite_jni.so"
                assert apk.read(f"lib/{abi}/{library}") == aar.read(f"jni/{abi}/{library}")
        return
    pytest.fail("the lock has no runtime")


def test_the_code_is_whole():
    """Every class of ours and of the runtime is there, and every superclass, field and method of ours has a home."""
    dump = said_by("dexdump", build_apk.APK)
    defined = set(re.findall(r"Class descriptor  : '(.*?)'", dump))
    for source in (build_apk.DEMO / "src" / "main" / "kotlin").rglob("*Activity.kt"):
        assert f"L{build_apk.PACKAGE.replace('.', '/')}/{source.stem};" in defined
    assert "Lorg/tensorflow/lite/Interpreter;" in defined
    assert "Lkotlin/jvm/internal/Intrinsics;" in defined
    supers = set(re.findall(r"Superclass        : '(.*?)'", dump))
    assert {name for name in supers - defined if not name.startswith(("Landroid/", "Ljava/"))} == set()


def test_the_code_is_in_a_format_that_android_7_knows():
    """Format 038 brought `invoke-custom`, into which lambdas would be made."""
    with zipfile.ZipFile(build_apk.APK) as archive:
        assert archive.read("classes.dex")[:8] in (b"dex\n035\0", b"dex\n037\0")


@needs_runtime
def test_its_files_answer_what_they_answered_when_they_were_shipped(tmp_path):
    with zipfile.ZipFile(build_apk.APK) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if name.startswith("assets/")])
    assert check_shipped(tmp_path / "assets") == []
    kept = build_apk.DEMO / "src" / "main" / "assets"
    for path in (tmp_path / "assets").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (kept / path.relative_to(tmp_path / "assets")).read_bytes()


def test_the_sources_of_the_demo_are_short():
    for path in (ROOT / "android_demo").rglob("*.kt"):
        assert len(path.read_text().splitlines()) <= 320, path
