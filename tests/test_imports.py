"""Who may import whom. The rules are data; the checker reads every module's syntax tree and runs nothing."""

import ast
from pathlib import Path

import pytest
from smoke_run import ROOT

# From the bottom up. A module imports modules of lower layers only: those of one layer are stages or tools side by
# side, and what composes them stands above. `run` and `report` compose records; pipelines compose the stages.
LAYERS = (
    {"errors", "tflite_worker", "runner_facts"},
    {"json_record"},
    {"commands", "report.drawing", "report.labels"},
    {"runtime_setup"},
    {"runtimes"},
    {
        *("schedules", "masks", "noise", "files", "graph", "union", "second_order", "fused_norms"),
        *("tflite_graph", "tflite_runner"),
        *(
            "benchmark.statistics",
            "benchmark.drift",
            "benchmark.arm64_setup",
            "benchmark.inputs",
            "benchmark.host_facts",
        ),
        "benchmark.profile_worker",
    },
    {"tflite_extras", "downloads", "benchmark.adb", "benchmark.profiles"},
    {"tflite_rewrite"},
    {"op_calls", "op_signatures"},
    {"single_ops"},
    {"op_versions"},
    {
        *("records", "ranking", "linear", "playback", "flat_graph", "datasets.fashion_mnist", "benchmark.arm64"),
        *("prunable", "sparsity_allocation", "sparse_encoding", "uint8_io", "xnnpack_layout", "layer_names"),
        *("metadata_schema", "min_runtime", "activations", "histograms", "int16_scales"),
    },
    {"calibration_data", "run_records", "rerun", "benchmark.comparison", "benchmark.android_results"},
    {"sensitivity_record", "partial_runs"},
    {"sensitivity_figures", "report.sensitivity_plot"},
    {"benchmark.turns", "interop.process", "class_changes", "port_checks", "preprocess_checks", "layer_errors"},
    {"benchmark.android_runners", "benchmark.android_settings"},
    {"interop.activations", "interop.operations", "interop.schedules", "benchmark.android_comparison"},
    {"interop.layers", "benchmark.android"},
    {"interop.bridge"},
    {"interop.files"},
    {
        "sparse_path",
        "preprocess",
        "pruning_wrapper",
        "channel_calls",
        "recommend",
        "evaluate",
        "verify",
        "benchmark.host",
        "benchmark.arm64_checks",
        "console",
    },
    {"benchmark.batch", "latency_table", "added_bias"},
    {"calibration", "bias_correction", "sparse_ready", "mixed_recipe", "metadata", "runtime_checks", "fake_quant"},
    {"quantize_patterns"},
    {"recipes", "quantize_aware", "sensitivity_allocation"},
    {
        "golden",
        "image_folder",
        "report.layer_plot",
        "mixed_precision",
        "channel_ids",
        "convert",
        "benchmark",
        "progress",
        "report.words",
        *("report.picture", "report.plausible"),
        "models",
        "sparsify",
        "pruning_callbacks",
    },
    {
        "verify_files",
        "distillation",
        "pruning_policy",
        "splits",
        "channel_ops",
        "channel_rules",
        "gradients",
        "moments",
        "report.pareto",
    },
    {"attention_rules", "einsum_rules", "embedding_rules", "recurrent_rules", "wrapped_rules"},
    {"keras_hub_rules", "inline"},
    {
        "regions",
        "channel_groups",
        "datasets.make_fashion_mnist",
        "report.layer_changes",
        "report.timing",
        "report.training",
    },
    {"report.tables"},
    {"report.markdown", "blocks"},
    {"block_removal", "block_ranking"},
    {"data", "constraints", "elimination", "reconstruct", "file_size", "inspect", "rewrite", "report.html"},
    {"activation_importance"},
    {"scoring"},
    {"importance", "train", "manifest", "one_shot", "equalize", "report.compare"},
    {"network_latency", "block_plan"},
    {"allocation", "unit_weights", "interop.tfmot", "latency_allocation", "latency_setup", "pruning_plan"},
    {"plan"},
    {"surgery", "regularization", "run", "ship"},
    {"prune", "compose", "sensitivity_changes", "step_targets"},
    {"iterative"},
    {"sensitivity_run"},
    {"sensitivity_store"},
    {"sensitivity_workers"},
    {"sensitivity", "sensitivity_worker"},
    {"options", "sparsity_options"},
    {"image_flags"},
    {"benchmark_cli", "convert_cli", "ship_cli", "verify_cli", "report_cli", "sensitivity_cli"},
    {"cli"},
)
# `mobileprune` and these packages only name what they hold.
EMPTY = {"", "datasets", "interop", "report"}

# Foreign packages that only some modules may import, wherever the import stands.
ALLOWED = {
    "keras": {
        *(
            "graph",
            *("channel_calls", "channel_ids"),
            "channel_rules",
            *("attention_rules", "einsum_rules", "embedding_rules", "inline"),
            "channel_ops",
            *("channel_groups", "recurrent_rules"),
            "rewrite",
            *("playback", "linear", "moments", "elimination", "reconstruct", "equalize"),
            *("activation_importance", "regularization"),
            *("regions", "flat_graph", "rerun", "blocks", "block_removal"),
            "gradients",
            "sparse_ready",
            "pruning_policy",
            "surgery",
            *("partial_runs", "sensitivity_changes"),
            *("prunable", "pruning_wrapper", "pruning_callbacks", "sparsify"),
            *("fake_quant", "quantize_patterns", "quantize_aware"),
            "models",
            *("distillation", "fused_norms", "train"),
            "convert",
            *("interop.bridge", "interop.operations"),
        ),
        "datasets.fashion_mnist",  # its download, inside a function
    },
    "tensorflow": {
        "channel_ops",
        "convert",
        "distillation",
        "fake_quant",
        "fused_norms",
        "linear",
        "gradients",
        "noise",
        "partial_runs",
        "pruning_callbacks",
        "pruning_wrapper",
        "splits",
        "train",
        "unit_weights",
        *(f"interop.{name}" for name in ("activations", "operations", "process", "tfmot")),
    },
    "ai_edge_litert": {
        *("tflite_graph", "tflite_extras", "tflite_rewrite", "tflite_worker", "xnnpack_layout"),
        *("op_signatures", "single_ops"),
        *("sparse_encoding", "uint8_io", "int16_scales", "activations", "bias_correction"),
    },
    "litert_quantizer": {"calibration", "recipes"},
    "tensorflow_model_optimization": {"interop.process"},
    "tf_keras": {"interop.process"},
    "matplotlib": {
        "report.drawing",
        *(f"report.{name}" for name in ("compare", "layer_changes", "pareto", "timing", "training")),
        "report.sensitivity_plot",
    },
    "jinja2": {"report.html", "report.markdown"},
    "rich": {"console", "progress", "cli", "verify_cli", "benchmark_cli", "sensitivity_cli"},
}
# Importing these must not import TensorFlow, which takes seconds: there it may stand inside functions only.
LAZY = {"gradients", "splits", "noise", "interop.activations", "interop.process", "interop.schedules"}
# They change the process that imports them, so nobody does it in passing.
NEVER_EAGER = {"tensorflow_model_optimization", "tf_keras"}


def sources(package: Path) -> dict[str, ast.Module]:
    """Each module's syntax tree by its name inside the package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imported(tree: ast.AST) -> set[str]:
    """Full names of everything that is imported, in functions too; of `from a import b` both `a` and `a.b`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def own_imports(tree: ast.AST, modules: set[str]) -> set[str]:
    """Modules of the package that a module imports."""
    names = {name.removeprefix("mobileprune.") for name in imported(tree) if name.startswith("mobileprune.")}
    return names & modules


def top_level(tree: ast.Module) -> ast.Module:
    """The module without what its functions import."""

    class WithoutFunctions(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return ast.Pass()

    copy = ast.parse(ast.unparse(tree))
    return WithoutFunctions().visit(copy)


def layer_of(name: str) -> int | None:
    return next((number for number, layer in enumerate(LAYERS) if name in layer), None)


def violations(modules: dict[str, ast.Module]) -> list[str]:
    """Every broken rule as a sentence."""
    found = []
    for name, tree in modules.items():
        level = layer_of(name)
        own = own_imports(tree, set(modules))
        if name in EMPTY:
            found += [f"{name or 'mobileprune'} imports {other}" for other in sorted(own)]
        elif level is None:
            found.append(f"{name} is in no layer")
        for other in sorted(own - EMPTY):
            below = layer_of(other)
            if name not in EMPTY and level is not None and (below is None or below >= level):
                found.append(f"{name} imports {other}, which is not below it")
        roots = {full.split(".")[0] for full in imported(tree)}
        for package, users in ALLOWED.items():
            if package in roots and name not in users:
                found.append(f"{name} imports {package}")
        late = roots & (NEVER_EAGER | ({"tensorflow"} if name in LAZY else set()))
        eager = {full.split(".")[0] for full in imported(top_level(tree))} if late else set()
        found += [f"{name} imports {other} when it is imported" for other in sorted(late & eager)]
        if roots & {"pipelines", "classify_mobile", "classify_flags", "export_stages", "tests"}:
            found.append(f"{name} imports a pipeline or a test")
        if any(full.startswith(".") for full in imported(tree)):
            found.append(f"{name} has a relative import")
        if name != "convert" and "TFLiteConverter" in mentioned(tree):
            found.append(f"{name} mentions TFLiteConverter")
    return found


def mentioned(tree: ast.AST) -> set[str]:
    """Every name and attribute in the code."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {full.rsplit(".", 1)[-1] for full in imported(tree)}


def cycles(modules: dict[str, ast.Module]) -> list[list[str]]:
    """Chains of modules that import each other, in functions too."""
    graph = {name: own_imports(tree, set(modules)) - {name} for name, tree in modules.items()}
    found, finished = [], set()

    def walk(name: str, chain: list[str]) -> None:
        if name in chain:
            found.append([*chain[chain.index(name) :], name])
        elif name not in finished:
            for other in sorted(graph[name]):
                walk(other, [*chain, name])
            finished.add(name)

    for name in graph:
        walk(name, [])
    return found


@pytest.fixture(scope="module")
def package():
    return sources(ROOT / "mobileprune")


def test_every_module_keeps_the_rules(package):
    assert violations(package) == []


def test_no_modules_import_each_other_in_a_circle(package):
    assert cycles(package) == []


def test_only_convert_builds_a_converter(package):
    assert [name for name, tree in package.items() if "TFLiteConverter" in mentioned(tree)] == ["convert"]


def test_the_layers_name_modules_that_exist(package):
    named = set().union(*LAYERS)
    assert len(named) == sum(map(len, LAYERS))
    assert named - set(package) <= {"cli"}


def test_what_runs_files_needs_neither_keras_nor_tensorflow(package):
    # Not even through what they import.
    graph = {name: own_imports(tree, set(package)) for name, tree in package.items()}
    for start in (
        "tflite_graph",
        "tflite_runner",
        "tflite_worker",
        "evaluate",
        *("verify", "runtime_checks"),
        "benchmark",
        "benchmark.host",
        *("benchmark.arm64_checks", "benchmark.android"),
        "sparse_path",
    ):
        reached, waiting = set(), [start]
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += graph[name]
        heavy = {"keras", "tensorflow", "tf_keras", "tensorflow_model_optimization"}
        assert [name for name in reached if {full.split(".")[0] for full in imported(package[name])} & heavy] == []


def test_the_worker_stands_alone(package):
    # It starts in milliseconds because it imports nothing of the package.
    assert own_imports(package["tflite_worker"], set(package)) == set()


def test_pipelines_hold_no_training_and_no_converter():
    for path in sorted((ROOT / "pipelines").glob("*.py")):
        names = mentioned(ast.parse(path.read_text(encoding="utf-8")))
        assert not names & {"TFLiteConverter", "compile_classifier", "load_checkpoint", "GradientTape"}, path.name


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("verify", "import keras", "verify imports keras"),
        ("evaluate", "from tensorflow import lite", "evaluate imports tensorflow"),
        ("tflite_runner", "def f():\n    import keras", "tflite_runner imports keras"),
        ("masks", "from keras import ops", "masks imports keras"),
        ("verify", "from mobileprune.evaluate import accuracy", "verify imports evaluate, which is not below it"),
        ("errors", "from mobileprune.records import Stage", "errors imports records, which is not below it"),
        ("sparsify", "from mobileprune import plan", "sparsify imports plan, which is not below it"),
        ("train", "from mobileprune.sparsify import sparsity\nfrom mobileprune import run", "train imports run"),
        ("surgery", "import tf_keras", "surgery imports tf_keras"),
        ("sparsify", "import tensorflow_model_optimization", "sparsify imports tensorflow_model_optimization"),
        ("manifest", "import export_stages", "manifest imports a pipeline or a test"),
        ("train", "from .data import Dataset", "train has a relative import"),
        ("recipes", "def f(tf):\n    return tf.lite.TFLiteConverter", "recipes mentions TFLiteConverter"),
        ("splits", "import tensorflow as tf", "splits imports tensorflow when it is imported"),
        ("surprise", "import os", "surprise is in no layer"),
        ("", "from mobileprune import records", "mobileprune imports records"),
    ],
)
def test_a_planted_violation_is_noticed(package, name, line, said):
    assert any(sentence.startswith(said) for sentence in violations({**package, name: ast.parse(line)}))


def test_a_planted_circle_is_noticed(package):
    planted = {**package, "errors": ast.parse("def f():\n    from mobileprune.run import Run")}
    assert any({"errors", "run"} <= set(chain) for chain in cycles(planted))


def test_one_module_imports_keras_2_and_only_inside_functions(package):
    inside = "def f():\n    import tf_keras, tensorflow_model_optimization"
    assert violations({**package, "interop.process": ast.parse(inside)}) == []
    for name, line in (("interop.tfmot", inside), ("interop.process", "import tf_keras")):
        found = violations({**package, name: ast.parse(line)})
        assert any(sentence.startswith(f"{name} imports tf_keras") for sentence in found)
