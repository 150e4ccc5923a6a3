"""Networks over time and space, cut to half, as files: LiteRT says what Keras says, and a planted fault is seen."""

import keras
import pytest
from architectures import random_inputs, randomise
from laws.removal import law_plan
from sequence_architectures import SEQUENCES
from zoo_architectures import ZOO

import mobileprune as mp

layers = keras.layers


def strided_3d():
    """TensorFlow Lite pools in two dimensions only: strides and a mean over all places do it in three."""
    inputs = keras.Input((6, 8, 8, 2))
    x = layers.Conv3D(8, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv3D(16, 3, padding="same", activation="relu")(x)
    x = layers.Add()([layers.Conv3D(16, 1)(x), y])
    x = layers.Conv3DTranspose(8, 2, strides=2)(x)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling3D()(x)), name="strided_3d")


def cells():
    """One of each kind of cell, an unrolled one, states passed on."""
    inputs = keras.Input((6, 5))
    x = layers.GRU(12, return_sequences=True)(inputs)
    x = layers.SimpleRNN(8, return_sequences=True, go_backwards=True)(x)
    x, hidden, carry = layers.LSTM(12, return_sequences=True, return_state=True, unroll=True)(x)
    x = layers.LSTM(12)(x, initial_state=[hidden, carry])
    return keras.Model(inputs, layers.Dense(5)(x), name="cells")


FILES = {
    **{name: SEQUENCES[name] for name in ("crnn", "bilstm_tagger", "channels_first", "merged_directions", "video")},
    **{name: ZOO[name] for name in ("gpt_tied", "gpt_grouped", "einsum_attention")},
    "strided_3d": strided_3d,
    "cells": cells,
}


def halved(name):
    """A network of random weights without half of each group, and 24 inputs."""
    # A random plan follows the names of layers, and those of unnamed ones what was built before.
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    model = randomise(FILES[name]())
    smaller = mp.prune_channels(model, law_plan(model, ratio=0.5, round_to=2))
    assert smaller.count_params() < 0.7 * model.count_params()
    (inputs,) = random_inputs(smaller, batch=24)
    return smaller, inputs


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("recipe", ["float32", "dynamic_int8"])
def test_a_halved_network_is_the_same_as_a_file(name, recipe):
    smaller, inputs = halved(name)
    (variant,) = mp.convert(smaller, [recipe])
    mp.verify(smaller, variant, inputs).raise_if_failed()


@pytest.mark.parametrize("name", ["bilstm_tagger", "gpt_tied", "crnn", "strided_3d"])
def test_words_of_other_sentences_are_seen(name):
    smaller, inputs = halved(name)
    (variant,) = mp.convert(smaller, ["float32"])
    assert mp.verify(smaller.predict(inputs[::-1], verbose=0), variant, inputs).failures


def test_files_that_take_ids_or_sequences_are_timed():
    files = [mp.convert(halved(name)[0], ["float32"])[0] for name in ("bilstm_tagger", "cells", "strided_3d")]
    for timed in mp.benchmark_host(files, rounds=2, min_round_ms=1.0):
        assert isinstance(timed, mp.Latency), timed
        assert timed.p50_ms > 0
