import os
import subprocess
import sys

import pytest

from mobileprune.noise import captured_noise, described

START = "import os, subprocess, sys, warnings; from mobileprune.noise import captured_noise\n"


def run(code):
    """A process of its own: pytest replaces `sys.stdout`, which must be the real one here."""
    done = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def test_python_descriptors_children_and_warnings_are_silenced():
    done = run("""
with captured_noise():
    print("python")
    print("python error", file=sys.stderr)
    os.write(1, b"descriptor")
    os.write(2, b"descriptor error")
    subprocess.run(["echo", "child"], check=True)
    warnings.warn("a warning")
print("after")
""")
    assert done.stdout == "after\n"
    assert done.stderr == ""


def test_the_last_lines_are_told(capfd):
    with captured_noise() as said:
        for number in range(1000):
            os.write(2, f"line {number}\n\n".encode())
        os.write(2, b"the reason\n")
        assert said() == "line 999 | the reason"


def test_nothing_printed_is_nothing_told(capfd):
    with captured_noise() as said:
        assert said() == ""


def test_bytes_that_are_no_text_are_told_somehow(capfd):
    with captured_noise() as said:
        os.write(1, b"\xff\xfe broken\n")
        assert "broken" in said()


def test_an_error_passes_and_output_is_back():
    done = run("""
try:
    with captured_noise():
        print("noise")
        raise ValueError("mine")
except ValueError as error:
    print("heard", error)
""")
    assert done.stdout == "heard mine\n"


def test_silence_can_be_nested():
    done = run("""
with captured_noise() as outer:
    with captured_noise() as inner:
        os.write(1, b"deep")
        assert inner() == "deep"
    os.write(1, b"shallow")
    assert outer() == "shallow"
print("heard")
""")
    assert done.stdout == "heard\n"


def test_the_order_of_what_is_heard_stays():
    done = run("""
print("before", end=" ")
with captured_noise():
    print("noise")
print("after")
""")
    assert done.stdout == "before after\n"


def test_no_descriptor_is_lost():
    def count():
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(5):
        with captured_noise():
            pass
    assert count() == before


@pytest.mark.parametrize(
    ("error", "said", "words"),
    [
        (ValueError("two\n  lines"), "", "two lines"),
        (ValueError("a"), "b | c", "a b | c"),
        (KeyError(), "", "KeyError"),
    ],
)
def test_a_foreign_error_fits_on_one_line(error, said, words):
    assert described(error, said) == words


def test_a_long_foreign_error_is_cut_in_the_middle():
    words = described(ValueError("start " + "x" * 5000 + " end"))
    assert words.startswith("start ")
    assert words.endswith(" end")
    assert len(words) < 650


def test_tensorflow_starts_without_a_word():
    done = run(
        "import mobileprune as mp; mp.quiet_tensorflow(); import keras, tensorflow as tf;"
        "tf.get_logger().warning('warned'); keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]);"
        "print(tf.reduce_sum(tf.ones(3)).numpy())"
    )
    assert done.stdout == "3.0\n"
    assert done.stderr == ""


def test_errors_are_still_heard_from_a_quiet_tensorflow():
    done = run("import mobileprune as mp; mp.quiet_tensorflow(); import absl.logging; absl.logging.error('broken')")
    assert "broken" in done.stderr
