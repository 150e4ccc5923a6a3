"""What MediaPipe says of `.tflite` files. Runs in the environment of `make mediapipe`, which has neither TensorFlow nor
mobileprune: one JSON object in on stdin, one out on the last line of stdout.
"""

import base64
import json
import sys


def classified(request):
    """The classes and scores of each image, best first, or the error."""
    import mediapipe
    from mediapipe.tasks.python.core.base_options import BaseOptions
    from mediapipe.tasks.python.vision import ImageClassifier, ImageClassifierOptions

    options = ImageClassifierOptions(base_options=BaseOptions(model_asset_path=request["model"]))
    try:
        with ImageClassifier.create_from_options(options) as classifier:
            answers = []
            for path in request["images"]:
                found = classifier.classify(mediapipe.Image.create_from_file(path)).classifications[0].categories
                answers.append([[each.index, each.category_name, each.score] for each in found])
            return answers
    except ValueError as error:
        return {"error": str(error)}


def displayed(request):
    """The metadata as the reader shows it, the attached files, and the version of readers that it asks for."""
    from mediapipe.tasks.cc.metadata.python import _pywrap_metadata_version
    from mediapipe.tasks.python.metadata.metadata import MetadataDisplayer

    display = MetadataDisplayer.with_model_file(request["model"])
    return {
        "metadata": json.loads(display.get_metadata_json()),
        "parser": _pywrap_metadata_version.GetMinimumMetadataParserVersion(bytes(display.get_metadata_buffer())),
        "files": {
            name: base64.b64encode(display.get_associated_file_buffer(name)).decode()
            for name in display.get_packed_associated_file_list()
        },
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answer = [{"classify": classified, "display": displayed}[each["command"]](each) for each in asked]
    print("\n" + json.dumps(answer))
