import numpy as np
import pytest

from mobileprune.calibration_data import contract_range
from mobileprune.errors import VerificationError
from mobileprune.port_checks import PORT_DTYPES, check_ports, promised_dtype, stored_range
from mobileprune.recipes import RECIPES
from mobileprune.records import Preprocess
from mobileprune.runner_facts import TensorFacts

CONTRACT = Preprocess(8, 8)
OUTPUTS = np.array([[-2.0, 3.0], [4.0, -1.0]])


def port(dtype="int8", shape=(1, 8, 8, 3), scale=2 / 255, zero_point=0):
    return TensorFacts("x", dtype, shape, scale, zero_point)


ANSWER = port(shape=(1, 2), scale=0.05, zero_point=-20)
FLOAT = TensorFacts("x", "float32", (1, 8, 8, 3), None, None)


def said(taken=None, answered=ANSWER, **options):
    options = {"recipe": "int8", "contract": CONTRACT, "expected": OUTPUTS, "names": ("a", "b")} | options
    return " ".join(check_ports([taken or port()], [answered], **options))


def test_every_recipe_has_its_promise():
    assert {name: recipe.io for name, recipe in RECIPES.items()} == dict(PORT_DTYPES)
    with pytest.raises(VerificationError, match="odd"):
        promised_dtype("odd")


def test_what_is_as_it_should_be():
    assert said() == ""
    float_answer = TensorFacts("y", "float32", (1, 2), None, None)
    assert said(FLOAT, float_answer, recipe="float32") == ""
    assert said(port(scale=1.85 / 255), ANSWER) == ""  # calibration images seldom reach black and white


def test_ids_stay_ids():
    words, answer = TensorFacts("words", "int32", (1, 9), None, None), TensorFacts("y", "float32", (1, 2), None, None)
    told = {"recipe": "dynamic_int8", "contract": None, "ids": True}
    assert said(words, answer, **told) == ""
    assert "the input is float32; the network takes ids" in said(FLOAT, answer, **told)
    assert "the input is int8; the network takes ids" in said(port(), answer, **told)
    assert "the output is int8" in said(words, **told)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"taken": FLOAT}, "the input is float32; int8 promises int8"),
        ({"answered": port("uint8", (1, 2))}, "the output is uint8"),
        ({"taken": port(shape=(1, 9, 8, 3))}, "takes (9, 8, 3); the preprocessing gives (8, 8, 3)"),
        ({"names": ("a", "b", "c")}, "has 2 outputs, but 3 labels are named"),
        ({"taken": port(zero_point=128)}, "zero point 128, which no int8 can hold"),
        ({"taken": port(scale=None)}, "int8 with scale None"),
        ({"taken": port(scale=float("nan"))}, "int8 with scale nan"),
        ({"taken": port("bool")}, "is bool"),
        ({"taken": port(zero_point=-128)}, "50% of that is cut off"),
        ({"taken": port(zero_point=40)}, "of that is cut off"),
        ({"taken": port(scale=1 / 255)}, "50% of that is cut off"),
        ({"taken": port(scale=1.0)}, "128 times less"),
        ({"contract": Preprocess(8, 8, mean=(0.0,), std=(1.0,))}, "is cut off"),
        ({"answered": port(shape=(1, 2), scale=0.01)}, "the output can hold -1.28 to 1.27"),
    ],
)
def test_what_is_not(changes, words):
    assert words in said(**changes)


def test_several_inputs_are_said():
    assert "2 inputs and 1 outputs" in check_ports([port(), port()], [ANSWER])[0]


def test_what_is_not_known_is_not_judged():
    assert check_ports([port(scale=5.0)], [port(shape=(1, 7))]) == []


def test_ranges():
    assert stored_range(FLOAT) is None
    assert stored_range(port(scale=0.5, zero_point=-28)) == (-50, 77.5)
    assert contract_range(CONTRACT) == (-1, 1)
    low, high = contract_range(Preprocess(8, 8, mean=(123.0, 116.0, 103.0), std=(58.0, 57.0, -57.0)))
    assert low == pytest.approx((103 - 255) / 57)
    assert high == pytest.approx((255 - 116) / 57)
