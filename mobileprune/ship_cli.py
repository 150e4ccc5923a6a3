"""`mobileprune ship`: a run's verified files into the Android demo, with pictures that it checks itself by."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

import mobileprune as mp
from mobileprune import preprocess
from mobileprune.errors import SettingsError
from mobileprune.run_records import Manifest
from mobileprune.ship import RECOMMENDED, asset_name, ship
from mobileprune.verify_files import find_images

FLAGS = flags.FLAGS
ASSETS = Path("android_demo/src/main/assets")
# So many pictures are looked at at most; each is run 5 times on every file.
_CANDIDATES = 100


def define() -> None:
    """The verb's flags."""
    flags.DEFINE_list("files", [RECOMMENDED], "Names of files of the run, or: recommended, all.")
    flags.DEFINE_string("images", None, "A folder of pictures to choose golden ones from. Default: the test images.")
    flags.DEFINE_integer("golden_pictures", 4, "How many of them.", lower_bound=2)
    flags.DEFINE_string("name", None, "The run's folder among the assets. Default: its own name.")
    flags.DEFINE_string("title", None, "What the app calls the run. Default: the folder's name.")
    flags.DEFINE_string("provenance", None, "A sentence: where model and data come from. Default: the manifest's.")
    flags.DEFINE_string("license_file", None, "The licence of model and data, to be kept beside them.")
    flags.DEFINE_string("assets", str(ASSETS), "The app's assets.")


def run(arguments: Sequence[str]) -> None:
    """Ships the files and says what went."""
    if len(arguments) != 1:
        raise SettingsError(f"Name a run's folder. Received: {' '.join(arguments) or 'nothing'}.")
    folder, assets = Path(arguments[0]), Path(FLAGS.assets)
    if not assets.parent.is_dir():
        raise SettingsError(f"{assets.parent} is missing: run this in a checkout of mobileprune, or give --assets.")
    asset_name(folder, FLAGS.name)
    license_text = preprocess.read(Path(FLAGS.license_file)) if FLAGS.license_file else None
    target = ship(
        folder,
        assets,
        _pictures(mp.read_manifest(folder)),
        files=FLAGS.files,
        name=FLAGS.name,
        title=FLAGS.title,
        provenance=FLAGS.provenance,
        license_text=license_text,
        golden_pictures=FLAGS.golden_pictures,
    )
    for entry in mp.read_manifest(target).variants:
        print(f"{target / entry.file}: {entry.bytes:,} bytes")
    pictures = sorted(path.name for path in target.glob("golden_*"))
    print(f"{len(pictures)} golden pictures: {', '.join(pictures)}. Build the app with `make apk`.")


def _pictures(manifest: Manifest) -> Iterator[Image.Image]:
    """Upright pictures: those in --images, or the test images of a dataset with a name."""
    if FLAGS.images:
        for path in find_images(Path(FLAGS.images), _CANDIDATES)[0]:
            yield preprocess.decode(preprocess.read(path), where=str(path))
        return
    name = str(manifest.dataset["name"])
    if name not in ("fashion_mnist", "fashion_mnist_full"):
        raise SettingsError(f"The run's images are not at hand ({manifest.dataset['source']}) Give --images=FOLDER.")
    # As they are, whatever the run made of them.
    as_stored = mp.Preprocess(28, 28, color="grayscale", mean=(0.0,), std=(1.0,))
    for image in mp.load_dataset(name, as_stored).test.images(_CANDIDATES):
        yield Image.fromarray(image[..., 0].astype(np.uint8))
