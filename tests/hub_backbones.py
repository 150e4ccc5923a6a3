"""Tiny backbones of Keras Hub, one of each family, from their constructors with random weights.

Each is a function that makes the backbone, and the sizes of its inputs that it leaves open.
"""

import keras
import keras_hub

models = keras_hub.models

WORDS, LENGTH = 40, 6
TOKENS = {"token_ids": (LENGTH,), "padding_mask": (LENGTH,)}
SEGMENTS = {**TOKENS, "segment_ids": (LENGTH,)}
TWO_SIDES = {f"{side}_{name}": (LENGTH,) for side in ("encoder", "decoder") for name in ("token_ids", "padding_mask")}
SPEECH = {"encoder_features": (12, 10), "decoder_token_ids": (LENGTH,), "decoder_padding_mask": (LENGTH,)}
IMAGE = (16, 16, 3)


def _bert_like(kind, *widths, **arguments):
    return lambda: kind(WORDS, 2, 2, 16, *widths, max_sequence_length=LENGTH, dropout=0.0, **arguments)


def efficientnet():
    return models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0, 1.0],
        stackwise_depth_coefficients=[1.0, 1.0],
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 1],
        stackwise_input_filters=[16, 16],
        stackwise_output_filters=[16, 24],
        stackwise_expansion_ratios=[1, 2],
        stackwise_strides=[1, 2],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_block_types=["v1", "v1"],
        stackwise_force_input_filters=[0, 0],
        stackwise_nores_option=[False, False],
        stem_conv_padding="same",
        num_features=32,
        input_shape=IMAGE,
    )


def mit():
    return models.MiTBackbone(
        max_drop_path_rate=0.1,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        layerwise_patch_sizes=[3, 3],
        layerwise_strides=[2, 2],
        hidden_dims=[16, 24],
        layerwise_depths=[1, 1],
        num_layers=2,
        image_shape=IMAGE,
    )


def mobilenet():
    return models.MobileNetBackbone(
        stackwise_expansion=[[16], [24, 24]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[16], [16, 16]],
        stackwise_kernel_size=[[3], [3, 3]],
        stackwise_num_strides=[[2], [1, 1]],
        stackwise_se_ratio=[[0.25], [None, 0.25]],
        stackwise_activation=[["relu"], ["relu", "hard_swish"]],
        stackwise_padding=[[1], [1, 1]],
        input_num_filters=16,
        input_activation="hard_swish",
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=32,
        output_num_filters=32,
        output_activation="hard_swish",
        image_shape=IMAGE,
    )


def _resnet(block, **arguments):
    return lambda: models.ResNetBackbone([64], [3], [64, 32], [1, 1], [1, 2], block, image_shape=IMAGE, **arguments)


def whisper():
    return models.WhisperBackbone(
        WORDS,
        2,
        2,
        16,
        32,
        num_mels=10,
        max_encoder_sequence_length=12,
        max_decoder_sequence_length=LENGTH,
        dropout=0.0,
    )


BACKBONES = {
    "albert": (_bert_like(models.AlbertBackbone, 16, 32), SEGMENTS),
    "bart": (_bert_like(models.BartBackbone, 32), TWO_SIDES),
    "bert": (_bert_like(models.BertBackbone, 32), SEGMENTS),
    "bloom": (lambda: models.BloomBackbone(WORDS, 2, 2, 16, 32, max_sequence_length=LENGTH), TOKENS),
    "densenet": (lambda: models.DenseNetBackbone([2, 2], growth_rate=8, stem_filters=16, image_shape=IMAGE), {}),
    "distil_bert": (_bert_like(models.DistilBertBackbone, 32), TOKENS),
    "efficientnet": (efficientnet, {}),
    "electra": (_bert_like(models.ElectraBackbone, 16, 32), SEGMENTS),
    "f_net": (
        lambda: models.FNetBackbone(WORDS, 2, 16, 32, dropout=0.0, max_sequence_length=LENGTH),
        {"token_ids": (LENGTH,), "segment_ids": (LENGTH,)},
    ),
    "falcon": (lambda: models.FalconBackbone(WORDS, 2, 2, 16, 32), TOKENS),
    "gpt2": (_bert_like(models.GPT2Backbone, 32), TOKENS),
    "gpt_neo_x": (_bert_like(models.GPTNeoXBackbone, 32), TOKENS),
    "llama": (lambda: models.LlamaBackbone(WORDS, 2, 4, 16, 32, 2), TOKENS),
    "mistral": (lambda: models.MistralBackbone(WORDS, 2, 4, 16, 32, 2), TOKENS),
    "mit": (mit, {}),
    "mobilenet": (mobilenet, {}),
    "opt": (_bert_like(models.OPTBackbone, 32), TOKENS),
    "phi3": (lambda: models.Phi3Backbone(WORDS, 2, 16, 32, 4, 2), TOKENS),
    "qwen": (lambda: models.QwenBackbone(WORDS, 2, 4, 2, 16, 32), TOKENS),
    "resnet": (_resnet("basic_block"), {}),
    "resnet_v2": (_resnet("bottleneck_block", use_pre_activation=True), {}),
    "roberta": (_bert_like(models.RobertaBackbone, 32), TOKENS),
    "vgg": (lambda: models.VGGBackbone([1, 1], [16, 24], image_shape=IMAGE), {}),
    "whisper": (whisper, SPEECH),
    "xception": (lambda: models.XceptionBackbone([[16, 16], [24, 24]], [True, False], image_shape=(32, 32, 3)), {}),
}


def with_head(backbone):
    """The backbone nested in a model that reads its last output: then no output holds what is inside."""
    inputs = keras.tree.map_structure(
        lambda tensor: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor._keras_history[0].name),
        backbone.input,
    )
    features = keras.tree.flatten(backbone(inputs))[-1]
    return keras.Model(inputs, keras.layers.Dense(5, name="head")(features), name="outer")
