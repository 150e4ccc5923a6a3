import itertools
import subprocess
import sys

import pytest

import mobileprune as mp

# Names of submodules that are names of functions, too.
SHADOWED = (
    "equalize",
    "benchmark",
    "convert",
    "evaluate",
    "recommend",
    "ship",
    "train",
    "verify",
    "channel_groups",
    "sparse_path",
    "sparse_ready",
    "layer_errors",
    "verify_files",
    "quantize_aware",
)


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", mp.__all__)
def test_every_public_name_is_there_and_is_no_module(name):
    value = getattr(mp, name)
    assert type(value).__name__ != "_Package"
    assert callable(value)
    assert name in dir(mp)


@pytest.mark.parametrize("name", mp.__all__)
def test_every_public_name_is_documented(name):
    assert (getattr(mp, name).__doc__ or "").strip()


def test_the_shadowed_names_are_all_there_are():
    homes = mp._HOME_OF
    assert {name for name, home in homes.items() if name == home} == set(SHADOWED)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mobileprune' has no attribute 'quantise'"):
        _ = mp.quantise
    assert not hasattr(mp, "os")


def test_importing_the_package_imports_neither_tensorflow_nor_keras():
    heavy = "{'tensorflow', 'keras', 'matplotlib', 'ai_edge_litert', 'litert_quantizer', 'tf_keras'}"
    assert run(f"import sys, mobileprune; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_names_that_need_no_keras_do_not_import_it():
    code = (
        "import sys, mobileprune as mp;"
        "mp.PolynomialDecay, mp.Manifest, mp.recommend, mp.evaluate, mp.verify, mp.benchmark, mp.load_dataset;"
        "mp.read_manifest, mp.MobilePruneError, mp.Limits;"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    assert run(code) == "[]"


def test_functions_stay_functions_whichever_module_is_imported_first():
    code = f"""
import importlib, itertools, sys
import mobileprune as mp
names = {SHADOWED!r}
for order in (names, names[::-1], names[3:] + names[:3]):
    for module in [name for name in sys.modules if name.startswith("mobileprune.")]:
        del sys.modules[module]
    for name in names:
        vars(mp).pop(name, None)
    for position, name in enumerate(order):
        importlib.import_module("mobileprune." + name)
        for other in names:
            assert callable(getattr(mp, other)), (order, name, other)
            assert getattr(mp, other).__module__.startswith("mobileprune."), other
print("functions")
"""
    assert run(code) == "functions"


@pytest.mark.parametrize(("first", "second"), itertools.permutations(("verify", "evaluate"), 2))
def test_both_ways_of_importing_work_after_each_other(first, second):
    code = (
        f"import mobileprune.{first}; import mobileprune as mp; from mobileprune.{second} import {second} as named;"
        f"from mobileprune import {first} as other; assert mp.{second} is named; assert other is mp.{first};"
        f"assert callable(other); import mobileprune.{second}; print(callable(mp.{second}))"
    )
    assert run(code) == "True"
