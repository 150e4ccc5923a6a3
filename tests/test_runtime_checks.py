import numpy as np
import pytest
from tiny_models import convnet, images, reference, swapped_outputs, variants

import mobileprune as mp
from mobileprune.calibration import calibrate
from mobileprune.errors import SettingsError, VerificationError
from mobileprune.recipes import quantize
from mobileprune.records import Variant
from mobileprune.runtime_checks import RUNTIMES, runtime_missing, usable_runtimes, verify_runtimes
from mobileprune.verify import Tolerance

COUNT = 32
OLD = "tflite_2.16.1"
HERE = ("litert", "litert_reference")


def needs(name):
    missing = runtime_missing(name)
    return pytest.mark.skipif(missing is not None, reason=str(missing))


def check(variant, runtimes, **settings):
    return verify_runtimes(reference()[:COUNT], variant, images(256, seed=7)[:COUNT], runtimes, **settings)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in RUNTIMES])
def test_sound_files_pass_on_every_runtime(name):
    for recipe in ("float32", "int8", "dynamic_int8"):
        found = check(variants()[recipe], [name], arm64_images=4)[name]
        assert (found.passed, found.reason) == (True, "")
        assert found.agreement > 0.7
        assert 0 < found.max_abs_error < 2
        assert found.runtime.startswith("TensorFlow Lite 2.16.1" if name == OLD else "LiteRT 2")


def four_bits():
    from litert_quantizer import quantizer, recipe

    made = quantizer.Quantizer(variants()["float32"].content, recipe.dynamic_wi4_afp32())
    return Variant("tiny", "dynamic_int4", bytes(made.quantize(enable_progress_report=False).quantized_model))


@needs(OLD)
def test_four_bit_weights_are_right_on_litert_and_noise_on_the_old_runtime():
    # Four bits cost this tiny network much; what the old runtime answers is no answer at all.
    coarse = Tolerance(snr_db=3.0, max_error=2.0, agreement=0.3, correlation=0.0)
    found = check(four_bits(), ["litert", OLD], tolerance=coarse)
    assert found["litert"].passed
    assert not found[OLD].passed
    assert "NaN" in found[OLD].reason
    assert found[OLD].agreement < found["litert"].agreement


def test_a_wrong_file_fails_everywhere():
    wrong = Variant("tiny", "float32", swapped_outputs(variants()["float32"].content))
    for found in check(wrong, HERE).values():
        assert not found.passed
        assert "dB" in found.reason
        assert found.agreement < 1


def test_a_crash_and_a_hang_are_results():
    content = variants()["float32"].content
    ranges = calibrate(content, images(8))
    for name in [name for name in ranges if name.startswith(("stem:", "depthwise:"))]:
        ranges[name] = {"min": np.array([np.nan]), "max": np.array([np.nan])}
    broken = Variant("tiny", "int8", quantize(content, "int8", ranges))
    found = check(broken, ["litert"])["litert"]
    assert not found.passed
    assert found.reason.startswith("tiny_int8.tflite")
    assert (found.agreement, found.max_abs_error) == (None, None)
    late = check(variants()["float32"], ["litert"], timeout_s=0.001)["litert"]
    assert not late.passed
    assert "within 0.001 s" in late.reason


def test_rubbish_is_a_result_on_every_runtime_that_is_here():
    found = check(Variant("tiny", "int8", b"no model"), usable_runtimes())
    assert tuple(found) == usable_runtimes()
    for name, result in found.items():
        assert not result.passed, name
        assert "\n" not in result.reason
        assert result.reason.startswith("tiny_int8.tflite")


def test_a_model_is_a_reference_too():
    model = convnet()
    variant = mp.convert(model, ["float32"], name="tiny")[0]
    assert mp.verify_runtimes(model, variant, images(4), HERE)["litert_reference"].passed


def test_unknown_and_missing_runtimes_are_refused_before_anything_runs(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"no runtime 'phone'; known: litert, .*arm64"):
        check(variants()["float32"], ["litert", "phone"])
    monkeypatch.setenv("MOBILEPRUNE_RUNTIMES", str(tmp_path))
    assert OLD not in usable_runtimes()
    assert "litert" in usable_runtimes()
    with pytest.raises(SettingsError, match=r"TensorFlow Lite 2\.16\.1"):
        check(Variant("tiny", "float32", b"not even looked at"), ["litert", OLD])


def test_settings_that_cannot_be_meant():
    with pytest.raises(SettingsError, match="arm64_images is 1"):
        check(variants()["float32"], ["litert"], arm64_images=1)
    for wrong in (np.zeros((2, 16, 16, 3), np.uint8), np.full((2, 16, 16, 3), np.nan, np.float32)):
        with pytest.raises(VerificationError, match="not float32, or hold NaN"):
            verify_runtimes(reference()[:2], variants()["float32"], wrong)
    with pytest.raises(VerificationError, match="no tolerance for recipe 'nothing'"):
        check(Variant("tiny", "nothing", b""), ["litert"])
    with pytest.raises(VerificationError, match="answers the same"):
        verify_runtimes(np.ones((2, 6), np.float32), variants()["float32"], images(2))
