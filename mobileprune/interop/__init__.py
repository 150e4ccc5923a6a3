"""The bridge to Keras 2: models, files and schedules of tf_keras and of the TensorFlow Model Optimization toolkit."""
