"""Every recipe on the smallest network of each family of keras.applications: verified, or refused with a true reason.

  python benchmarks/recipes_zoo.py [--only='MobileNet*,VGG16'] [--efficientnet=network.keras] [--out=folder]

Each network, in a process of its own, with fresh weights and statistics that are all different but magnify no noise,
is converted and calibrated once, on images of smooth noise. Then each recipe makes its file, `verify` compares its
answers with the network's on other images, and `verify_runtimes` does on LiteRT without XNNPACK and, where it is set
up, TensorFlow Lite 2.16.1. The sparse recipes get the same network with the smallest 80% of each kernel set to zero.

Prints a table, network × recipe, and each reason below it. Exit code 1 if a recipe failed without a clear reason, or a
reason is not true (see `tests/laws/recipe_outcomes.py` for what is looked up). What is finished is kept in --out, so
that a run that was killed goes on. 14 networks take about half an hour on two idle cores.
"""

import dataclasses
import fnmatch
import gc
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import zoo
from absl import app, flags

import mobileprune as mp
from mobileprune.recipes import RECIPES

HERE = Path(__file__).resolve().parent
EFFICIENTNET = flags.DEFINE_string("efficientnet", None, "A trained network besides: a .keras file.")
PHOTOS = flags.DEFINE_string("photos", None, "A folder of photographs for it; scikit-image's own by default.")
MEAN = flags.DEFINE_float("mean", 127.0, "Of the 0 to 255 values, for --efficientnet.")
STD = flags.DEFINE_float("std", 128.0, "The same.")
CALIBRATION = flags.DEFINE_integer("calibration_images", 40, "How many.", lower_bound=8)
IMAGES = flags.DEFINE_integer("images", 16, "How many to verify on.", lower_bound=16)
OFFSET = flags.DEFINE_float("offset", 1.0, "Added to the offsets of all batch normalizations with fresh weights.")
ZEROS = flags.DEFINE_float("zeros", 0.8, "Of each kernel, for sparse recipes.", lower_bound=0, upper_bound=0.99)
OUT = flags.DEFINE_string("out", str(HERE / "results" / "recipes_zoo"), "A folder for what is finished.")

# Of each module of keras.applications the smallest network, and the smallest input that it takes.
SMALLEST = {
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "NASNetMobile": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "Xception": 71,
}
TRAINED = "--efficientnet"
FURTHER = ("litert_reference", "tflite_2.16.1")


def outcomes() -> Any:
    """The tests' own definition of the law, and of a true reason."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    return importlib.import_module("laws.recipe_outcomes")


def examine(name: str) -> dict[str, Any]:
    """Every recipe of one network."""
    started = time.perf_counter()
    law = outcomes()
    model, calibration, images = trained() if name == TRAINED else fresh(name)
    runtimes = [each for each in FURTHER if mp.runtime_missing(each) is None]
    found = []
    for sparse in (False, True):
        if sparse:
            thin_out(model, calibration)
        expected = np.asarray(model(images, training=False))
        content = mp.to_float_flatbuffer(model)
        ranges = None if sparse else law.measured_ranges(content, calibration)
        for recipe in RECIPES.values():
            if recipe.sparse == sparse:
                print(f"{name} {recipe.name}", file=sys.stderr, flush=True)
                found.append(law.outcome(content, recipe.name, ranges, expected, images, runtimes=runtimes))
        gc.collect()
    return {
        "name": name if name != TRAINED else Path(EFFICIENTNET.value).stem,
        "size": model.inputs[0].shape[1],
        "seconds": time.perf_counter() - started,
        "outcomes": [dataclasses.asdict(each) for each in found],
    }


def fresh(name: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """A network of keras.applications, and noise to calibrate and verify on."""
    flags.FLAGS.size = max(zoo.SIZE.value, SMALLEST[name])
    model = zoo.build(name)
    zoo.randomise(model)
    calibration, images = zoo.noise(model, CALIBRATION.value, seed=7), zoo.noise(model, IMAGES.value, seed=8)
    # Weights by chance make networks that magnify any noise, their own rounding, too: ResNet50 at 64 pixels by 37 dB.
    # With higher offsets most values pass the activations as they are: 8 dB, and a low ratio tells of faults.
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.center:
            layer.beta.assign(layer.beta + OFFSET.value)
    # The statistics of a few images would hold for these only.
    mp.recalibrate(model, calibration, batch_size=len(calibration))
    return model, calibration, images


def trained() -> tuple[Any, np.ndarray, np.ndarray]:
    """The network of --efficientnet, and crops of photographs."""
    model = mp.load_model(EFFICIENTNET.value)
    height, width, _ = model.inputs[0].shape[1:]
    generator = np.random.default_rng(7)
    photos = photographs(height * 9 // 7, width * 9 // 7)
    crops = []
    for number in range(CALIBRATION.value + IMAGES.value):
        photo = photos[number % len(photos)]
        top, left = generator.integers(photo.shape[0] - height + 1), generator.integers(photo.shape[1] - width + 1)
        window = photo[top : top + height, left : left + width]
        crops.append(window[:, ::-1] if generator.random() < 0.5 else window)
    numbers = (np.stack(crops).astype(np.float32) - MEAN.value) / STD.value
    return model, *np.split(numbers.astype(np.float32), [CALIBRATION.value])


def photographs(height: int, width: int) -> list[np.ndarray]:
    """RGB photographs, uint8, stretched to one size."""
    from PIL import Image

    if PHOTOS.value:
        paths = sorted(path for path in Path(PHOTOS.value).rglob("*") if path.suffix in (".jpg", ".jpeg", ".png"))
        opened = [Image.open(path).convert("RGB") for path in paths]
    else:
        import skimage.data as data

        made = (data.astronaut, data.chelsea, data.coffee, data.rocket, data.hubble_deep_field, data.retina)
        opened = [Image.fromarray(each()[..., :3]) for each in made]
    if not opened:
        raise mp.DatasetError(f"--photos={PHOTOS.value} holds no .jpg or .png.")
    return [np.asarray(each.resize((width, height))) for each in opened]


def thin_out(model: Any, images: np.ndarray) -> None:
    """Sets the smallest weights of each kernel of a convolution or dense layer to zero."""
    for variable in model.trainable_variables:
        values = np.asarray(variable)
        if values.ndim in (2, 4) and variable.path.endswith("/kernel"):
            variable.assign(np.where(np.abs(values) > np.quantile(np.abs(values), ZEROS.value), values, 0))
    mp.recalibrate(model, images, batch_size=len(images))


def in_own_process(name: str) -> dict[str, Any]:
    """`examine(name)` in a process of its own; its crash is a result that nothing explains."""
    own = ("only", "limit", "member", "json", "out")
    passed = [f"--{flag.name}={flag.value}" for flag in own_flags() if flag.present and flag.name not in own]
    started = time.perf_counter()
    try:
        ran = subprocess.run(
            [sys.executable, __file__, f"--member={name}", *passed],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=zoo.TIMEOUT.value,
        )
    except subprocess.TimeoutExpired:
        said = f"took longer than {zoo.TIMEOUT.value} s"
    else:
        lines = ran.stdout.strip().splitlines()
        if ran.returncode == 0 and lines:
            return dict(json.loads(lines[-1]))
        said = f"the process ended with code {ran.returncode}"
    return {"name": name, "size": 0, "seconds": time.perf_counter() - started, "outcomes": [], "crash": said}


def own_flags() -> list[Any]:
    """The flags that this file and `zoo` define."""
    modules = {flags.FLAGS.find_module_defining_flag(flag) for flag in ("efficientnet", "size")}
    known = flags.FLAGS.flags_by_module_dict()
    return [flag for module in modules for flag in known[module]]


def table(results: list[dict[str, Any]], runtimes: tuple[str, ...] = FURTHER) -> str:
    """Network × recipe as markdown, and the reasons below it, each once."""
    notes: dict[str, int] = {}
    lines = [f"| network | {' | '.join(RECIPES)} |", "|---" * (len(RECIPES) + 1) + "|"]
    for result in results:
        cells = {each["recipe"]: _cell(each, notes) for each in result["outcomes"]}
        missing = result.get("crash", "not run")
        row = " | ".join(cells.get(recipe, missing) for recipe in RECIPES)
        lines.append(f"| {result['name']} {result['size']} | {row} |")
    lines += ["", *(f"{number}. {note}" for note, number in notes.items())]
    return "\n".join(lines)


def _cell(found: dict[str, Any], notes: dict[str, int]) -> str:
    def note(said: str) -> str:
        said = said.replace(f"zoo_{found['recipe']}.tflite", "the file")
        return f"({notes.setdefault(said, len(notes) + 1)})"

    ratio = "" if found["snr_db"] is None else f"{found['snr_db']:.{1 if found['reason'] else 0}f} dB"
    told = bool(ratio) and "the outputs have" in found["reason"]  # then the ratio says why
    said = ["ok" if not found["reason"] else "refused" if told else f"refused {note(found['reason'])}", ratio]
    if found["untrue"]:
        said.append(f"UNTRUE {note(found['untrue'])}")
    if found["float_ops"]:
        listed = ", ".join(f"{count} {kind}" for kind, count in found["float_ops"].items())
        said.append(f"float {note('In float: ' + listed + '.')}")
    if not found["reason"]:
        said += [f"not on {name} {note(reason)}" for name, reason in found["runtimes"].items() if reason]
    return " ".join(each for each in said if each)


def unexplained(results: list[dict[str, Any]]) -> list[str]:
    """Networks and recipes that failed without a clear and true reason."""
    crashed = [f"{result['name']}: {result['crash']}" for result in results if "crash" in result]
    return crashed + [
        f"{result['name']} {found['recipe']}: {found['reason']!r}, but {found['untrue']}"
        for result in results
        for found in result["outcomes"]
        if found["untrue"]
    ]


def main(_: list[str]) -> int:
    """Runs what is not finished in --out, then prints the table; the exit code."""
    if zoo.MEMBER.value:
        mp.quiet_tensorflow()
        print(json.dumps(examine(zoo.MEMBER.value)))
        return 0
    known = [*SMALLEST, *([TRAINED] if EFFICIENTNET.value else [])]
    chosen = [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in zoo.ONLY.value)]
    if not chosen:
        print(f"--only={','.join(zoo.ONLY.value)} matches none of {', '.join(known)}.", file=sys.stderr)
        return 2
    folder = Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for name in chosen[: zoo.LIMIT.value]:
        kept = folder / f"{name.lstrip('-')}.json"
        if not kept.exists():
            result = in_own_process(name)
            print(f"{name}: {result['seconds']:.0f} s", file=sys.stderr, flush=True)
            if "crash" not in result:
                kept.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            results.append(result)
        else:
            results.append(json.loads(kept.read_text(encoding="utf-8")))
    print(table(results))
    for line in (bad := unexplained(results)):
        print(line, file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
