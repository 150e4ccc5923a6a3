"""Takes a Keras model to a small, fast, verified `.tflite` on an Android phone."""
