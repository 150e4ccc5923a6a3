"""Takes a Keras model to a small, fast, verified `.tflite` on an Android phone.

Names are imported when they are first used, so that `import mobileprune` does not wait for TensorFlow.
"""

import importlib
import sys
import types
from typing import Any

_HOMES = {
    "data": ("Dataset", "Split", "default_preprocess", "folder_batches", "load_dataset", "load_images", "read_labels"),
    "files": ("file_digest",),
    "models": (
        *("build_model", "gives_probabilities", "input_contract", "is_model_file", "load_model", "output_count"),
        *("output_layer", "short_name", "with_fixed_input"),
    ),
    "train": ("TrainSettings", "agreement", "recalibrate", "save_checkpoint", "set_seed", "train", "validate"),
    "distillation": ("Distillation",),
    "schedules": ("ConstantSparsity", "PolynomialDecay", "PruningSchedule"),
    "sparsify": ("hold_zeros", "prune_low_magnitude", "prune_now", "sparsity", "strip_pruning"),
    "pruning_wrapper": ("PruneLowMagnitude",),
    "pruning_callbacks": ("PruningSummaries", "UpdatePruningStep"),
    "prunable": ("Kernel", "register_prunable"),
    "one_shot": ("prune_one_shot",),
    "channel_groups": ("ChannelGroup", "channel_groups"),
    "blocks": ("Block", "removable_blocks"),
    "block_ranking": ("rank_blocks",),
    "block_removal": ("remove_blocks",),
    "plan": ("plan_channels", "pruning_floor"),
    "pruning_plan": ("PruningPlan", "cost_of_plan"),
    "ranking": ("Ranking",),
    "latency_setup": ("latency_model",),
    "inline": ("inline_layers",),
    "sensitivity": ("analyse_sensitivity",),
    "sensitivity_record": ("PartSensitivity", "Sensitivity", "SensitivityPoint"),
    "sensitivity_allocation": ("channel_rankings", "mixed_bits", "sparsity_shares"),
    "report.sensitivity_plot": ("write_sensitivity_plot",),
    "prune": ("narrower", "prune_channels"),
    "regularization": ("BatchNormL1", "GroupLasso", "GrowingRegularization"),
    "compose": ("compose_plans",),
    "fused_norms": ("fused_batch_norms",),
    "iterative": ("IterativePruning", "prune_iteratively", "share_epochs"),
    "channel_calls": ("register_channels",),
    "inspect": ("layer_facts", "model_facts", "record_of_layers"),
    "quantize_aware": ("is_quantize_aware", "quantize_aware", "strip_quantization", "unquantized_layers"),
    "convert": ("convert", "to_float_flatbuffer"),
    "calibration": ("Ranges", "calibrate"),
    "calibration_data": ("contract_range",),
    "equalize": ("equalize",),
    "bias_correction": ("correct_biases",),
    "recipes": ("check_recipes",),
    "mixed_recipe": ("Recipe", "Rule", "read_recipe"),
    "layer_names": ("float_layers", "layer_of", "op_layers"),
    "sparse_encoding": ("encode_sparse",),
    "uint8_io": ("with_uint8_io",),
    "metadata": ("Metadata", "add_metadata", "read_metadata"),
    "min_runtime": ("minimum_runtime", "unknown_ops", "with_minimum_runtime", "with_versions"),
    "sparse_path": ("SparsePath", "check_arm", "sparse_path"),
    "sparse_ready": ("SparseReady", "measure_rewrite", "sparse_ready"),
    "pruning_policy": ("PruneForLatencyOnXNNPack",),
    "verify": ("verify",),
    "runtime_checks": ("runtime_missing", "usable_runtimes", "verify_runtimes"),
    "verify_files": ("verify_files",),
    "layer_errors": ("LayerErrors", "layer_errors"),
    "mixed_precision": ("choose_precision", "remedies", "sensitivities"),
    "preprocess_checks": ("preprocess_faults",),
    "evaluate": ("evaluate",),
    "benchmark": ("benchmark", "benchmark_files", "benchmark_host", "compare_host"),
    "benchmark.comparison": ("difference_of", "verdicts"),
    "benchmark.profiles": ("profile_host",),
    "benchmark.adb": ("android_devices",),
    "benchmark.android": ("benchmark_android", "measure_android"),
    "benchmark.android_settings": ("AndroidSettings",),
    "benchmark.batch": ("benchmark_batch",),
    "benchmark.arm64": ("arm64_missing", "run_on_arm64"),
    "benchmark.arm64_checks": ("benchmark_arm64", "compare_on_arm64", "sparse_kernels"),
    "recommend": ("Limits", "meets", "recommend"),
    "manifest": ("read_manifest", "write_manifest"),
    "ship": ("check_shipped", "ship"),
    "report.html": ("write_html",),
    "report.compare": ("compare_runs", "write_comparison"),
    "report.markdown": ("write_markdown",),
    "records": ("Latency", "Preprocess", "RuntimeCheck", "Variant", "Verification"),
    "run_records": ("Manifest", "Stage"),
    "run": ("Run", "Task"),
    "interop.bridge": ("to_tf_keras",),
    "interop.files": ("from_tf_keras",),
    "interop.schedules": ("schedule_from_tfmot", "to_tfmot_schedule"),
    "interop.tfmot": ("prune_low_magnitude_with_tfmot", "train_with_tfmot"),
    "errors": ("InteropError", "MobilePruneError"),
    "noise": ("quiet_tensorflow",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mobileprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mobileprune.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__


class _Package(types.ModuleType):
    """Python binds a submodule to its package when it is imported; `mp.convert` must stay the function it names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if _HOME_OF.get(name) == name and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
