"""Puts a run's files into an app: verified ones only, with all that the app needs to know and to check itself by.

The assets of an app are one folder for each run and an `index.json`:

    index.json                              the runtime that the app carries, and the runs
    <run>/manifest.json                     of the files that are there; the app reads this and nothing else
    <run>/<file>_<8 digits of its hash>.tflite
    <run>/golden.json, golden_0.jpg, …      pictures with the answers that they must give on the phone
    <run>/labels.txt, LICENSE.txt
"""

import contextlib
import dataclasses
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from mobileprune import runtimes
from mobileprune.errors import OutputError, SettingsError, VerificationError, known_names
from mobileprune.files import file_digest, read_json, write_bytes, write_json
from mobileprune.golden import GoldenPicture, golden_faults, make_golden, open_runners
from mobileprune.json_record import Json
from mobileprune.manifest import SCHEMA, read_manifest, write_manifest
from mobileprune.recommend import recommend
from mobileprune.run_records import Manifest, VariantRecord

# What `make apk` puts into the app.
RUNTIME = runtimes.OLD
INDEX = "index.json"
GOLDEN, LABELS, LICENSE = "golden.json", "labels.txt", "LICENSE.txt"
RECOMMENDED, ALL = "recommended", "all"
# What the app can fill and read.
_TYPES = ("float32", "int8", "uint8")
# Points of accuracy, as by default in the pipelines.
_TOLERATED_DROP = 1.0


def ship(
    folder: Path,
    assets: Path,
    pictures: Iterable[Image.Image],
    *,
    files: Sequence[str] = (RECOMMENDED,),
    name: str | None = None,
    title: str | None = None,
    provenance: str | None = None,
    license_text: bytes | None = None,
    golden_pictures: int = 4,
) -> Path:
    """Copies a run's files to an app's assets, in the place of what was shipped under the same name.

    Args:
        folder: the run's folder, with its `manifest.json`.
        assets: the app's assets.
        pictures: upright ones, to choose golden ones from; see `mobileprune.golden`.
        files: names of files, or `"recommended"` or `"all"`.
        name: the folder among the assets; the run's own name by default.
        title: what people call the run; its name by default.
        provenance: a sentence on where model and data come from; the manifest's on the data by default.
        license_text: the licence of model and data, kept beside them.
        golden_pictures: how many of the pictures, at least 2.

    Returns:
        The folder among the assets.

    Raises:
        SettingsError: a file is not in the run, takes numbers that the app cannot give, or the app's runtime is not set
            up here.
        VerificationError: a file was not verified on the app's runtime, or is not the one that was.
        OutputError: something cannot be read or written.
        DatasetError: no golden pictures can be made; see `make_golden`.

    Example:
        >>> ship(Path("tflite_models/my_run"), Path("android_demo/src/main/assets"), pictures)  # doctest: +SKIP
    """
    if missing := runtimes.interpreter_missing(RUNTIME):
        raise SettingsError(missing)
    if golden_pictures < 2:
        raise SettingsError(f"golden_pictures is {golden_pictures}; at least 2 are needed.")
    target = assets / asset_name(folder, name)
    index = _index(assets)
    manifest = read_manifest(folder)
    chosen = _chosen(manifest, files)
    contents = {entry.file: _content(folder, entry) for entry in chosen}
    names = {entry.file: f"{Path(entry.file).stem}_{entry.sha256[:8]}.tflite" for entry in chosen}
    shipped = {names[file]: content for file, content in contents.items()}
    golden = make_golden(pictures, manifest.preprocess, shipped, RUNTIME, golden_pictures)
    title_of_runtime = runtimes.find_interpreter(RUNTIME).title
    with _replacing(target) as made:
        for file, content in [*shipped.items(), *((picture.file, content) for picture, content in golden)]:
            write_bytes(made / file, content)
        images = [picture.to_json() for picture, _ in golden]
        write_json(made / GOLDEN, {"schema": SCHEMA, "runtime": title_of_runtime, "images": images})
        write_bytes(made / LABELS, "".join(f"{label}\n" for label in manifest.labels).encode())
        if license_text is not None:
            write_bytes(made / LICENSE, license_text)
        write_manifest(made, _shipped(manifest, chosen, names))
    entry = {
        "folder": target.name,
        "title": title or target.name,
        "provenance": provenance or manifest.dataset["source"],
    }
    runs = {run["folder"]: run for run in index if (assets / run["folder"]).is_dir()} | {target.name: entry}
    write_json(assets / INDEX, {"schema": SCHEMA, "runtime": title_of_runtime, "runs": list(runs.values())})
    return target


def asset_name(folder: Path, name: str | None = None) -> str:
    """What a run's folder among the assets is called: the given name, or the run's.

    Raises:
        SettingsError: a name that could lead out of the assets, or that Android does not take.
    """
    found = name or folder.resolve().name
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", found):
        raise SettingsError(f"{found!r} is no name for a folder of assets; give one (--name) of a to z, 0 to 9 and _.")
    return found


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target` when the block ends well, and vanishes when it does not."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    except OSError as error:
        raise OutputError(f"Cannot write {target.parent}: {error.strerror or error}.") from error
    try:
        yield made
        made.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    except OSError as error:
        raise OutputError(f"Cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_shipped(assets: Path) -> list[str]:
    """What is wrong with an app's assets, as sentences: every file is read again and run on the app's runtime.

    Args:
        assets: the folder with `index.json`, as it was shipped or as it was taken out of an APK.

    Raises:
        OutputError: a file is missing or is not JSON.
        SettingsError: the app's runtime is not set up here.
        DatasetError, InterpreterError: a golden picture cannot be decoded, a file crashed.
    """
    faults = []
    for run in _index(assets):
        folder = assets / run["folder"]
        manifest = read_manifest(folder)
        files = {}
        for entry in manifest.variants:
            if file_digest(folder / entry.file) != entry.sha256:
                faults.append(f"{run['folder']}/{entry.file} is not the file that was verified.")
            files[entry.file] = _read(folder / entry.file)
        golden = [GoldenPicture.from_json(each) for each in read_json(folder / GOLDEN)["images"]]
        if len(golden) < 2:
            faults.append(f"{run['folder']} has {len(golden)} golden pictures.")
        with open_runners(files, RUNTIME) as runners:
            for picture in golden:
                content = _read(folder / picture.file)
                said = golden_faults(picture, content, manifest.preprocess, runners)
                faults += [f"{run['folder']}/{fault}" for fault in said]
    return faults


def _chosen(manifest: Manifest, files: Sequence[str]) -> list[VariantRecord]:
    """The variants that are meant, in the manifest's order, all verified on the app's runtime."""
    known = {entry.file: entry for entry in manifest.variants}
    wanted: set[str] = set()
    for file in files:
        if file == RECOMMENDED:
            wanted |= set(manifest.recommended.values())
        elif file == ALL:
            wanted |= set(known)
        elif file in known:
            wanted.add(file)
        else:
            raise SettingsError(f"The run has no file {file!r}; it has {known_names(known)}.")
    chosen = [entry for entry in manifest.variants if entry.file in wanted]
    if not chosen:
        raise SettingsError("No files are to be shipped; name some, or recommended or all.")
    title = runtimes.find_interpreter(RUNTIME).title
    for entry in chosen:
        if other := {entry.input.dtype, entry.output.dtype} - set(_TYPES):
            raise SettingsError(f"{entry.file} takes or answers {other.pop()}; the app knows {known_names(_TYPES)}.")
        if title not in entry.verified_runtimes:
            tried = next(
                (check.reason for check in entry.runtimes if check.runtime == title), "It was not tried there."
            )
            raise VerificationError(
                f"{entry.file} was not verified on {title}, which the app carries: {tried} Run the pipeline again with "
                f"--runtimes={RUNTIME} (after `make runtimes`), or ship other files."
            )
    return chosen


def _content(folder: Path, entry: VariantRecord) -> bytes:
    """A file's bytes, if they are those that were verified."""
    path = folder / Path(entry.file).name
    found = file_digest(path)
    if found != entry.sha256:
        raise VerificationError(
            f"{path} has the SHA-256 {found}, the verified file had {entry.sha256}. Run the pipeline again."
        )
    return _read(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OutputError(f"Cannot read {path}: {error.strerror or error}.") from error


def _shipped(manifest: Manifest, chosen: Sequence[VariantRecord], names: dict[str, str]) -> Manifest:
    """The manifest of what is shipped."""
    variants = tuple(dataclasses.replace(entry, file=names[entry.file]) for entry in chosen)
    # Where a recommended file stays behind, the best of the others for its goal takes its place.
    recommended = recommend(variants, _TOLERATED_DROP)
    recommended |= {goal: names[file] for goal, file in manifest.recommended.items() if file in names}
    return dataclasses.replace(manifest, variants=variants, rejected=(), recommended=recommended)


def _index(assets: Path) -> list[Json]:
    """The runs that are there already."""
    if not (assets / INDEX).exists():
        return []
    index = read_json(assets / INDEX)
    try:
        if index["schema"] != SCHEMA:
            raise OutputError(f"{assets / INDEX} has schema {index['schema']!r}; {SCHEMA} is known. Remove it.")
        return [{name: str(run[name]) for name in ("folder", "title", "provenance")} for run in index["runs"]]
    except (KeyError, TypeError) as error:
        raise OutputError(f"{assets / INDEX} is no index of runs ({error!r}). Remove it and ship again.") from error
