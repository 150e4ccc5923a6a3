import io
import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from mobileprune.tflite_worker import FrameError, read_frame, send_frame


def frame(header: object, body: bytes = b"") -> io.BytesIO:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return io.BytesIO(struct.pack("<I", len(encoded)) + encoded + body)


def test_a_frame_comes_back_as_it_was_sent():
    stream = io.BytesIO()
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([-1, 2**40]), np.zeros((0, 4), np.float32)]
    send_frame(stream, {"command": "run"}, arrays)
    stream.seek(0)
    header, read = read_frame(stream)
    assert header == {"command": "run"}
    for sent, received in zip(arrays, read, strict=True):
        assert received.dtype == sent.dtype
        np.testing.assert_array_equal(received, sent)
    assert read_frame(stream) is None


@pytest.mark.parametrize(
    "stream",
    [
        io.BytesIO(b"ab"),
        io.BytesIO(b"\xff\xff\xff\xff"),
        io.BytesIO(struct.pack("<I", 100) + b"{}"),
        frame(b"\xff\xfe"),
        frame(b"not json"),
        frame([1]),
        frame(b"[" * 100_000),
        frame({"arrays": 3}),
        frame({"arrays": [["object", [1]]]}, b"12345678"),
        frame({"arrays": [["float32", [-1]]]}),
        frame({"arrays": [["float32", [True]]]}, b"1234"),
        frame({"arrays": [["float32", [2**40, 2**40]]]}),
        frame({"arrays": [["float32", [2]]]}, b"1234"),
        frame({"arrays": [["float32"]]}),
    ],
)
def test_rubbish_is_refused(stream):
    with pytest.raises(FrameError):
        read_frame(stream)


def test_the_worker_loads_nothing_heavy():
    code = (
        "import sys, mobileprune.tflite_worker, ai_edge_litert.interpreter;"
        "print([name for name in ('tensorflow', 'keras', 'jax', 'litert_quantizer') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def talk(*headers: dict) -> list[dict]:
    requests = io.BytesIO()
    for header in headers:
        send_frame(requests, header)
    done = subprocess.run(
        [sys.executable, "-m", "mobileprune.tflite_worker"], input=requests.getvalue(), capture_output=True, check=True
    )
    answers, stream = [], io.BytesIO(done.stdout)
    while (answer := read_frame(stream)) is not None:
        answers.append(answer[0])
    return answers


def test_errors_are_answers_and_the_worker_goes_on(tmp_path):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"no model")
    answers = talk(
        {"command": "facts"},
        {"command": "load", "path": str(bad), "threads": 1},
        {"command": "load", "path": str(tmp_path / "missing.tflite"), "threads": 1},
        {"command": "load"},
        {"command": "load", "path": str(bad), "threads": 1, "library": "os"},
        {"command": "quit"},
        {"command": "facts"},
    )
    assert [sorted(answer) for answer in answers] == [["error"]] * 5
    assert "no file is loaded" in answers[0]["error"]
    assert "no runtime 'os'" in answers[4]["error"]
