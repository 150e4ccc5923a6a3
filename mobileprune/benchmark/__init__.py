"""Measuring how long a `.tflite` takes, and what the figures are worth."""
