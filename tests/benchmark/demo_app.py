"""Stands in for the demo app's headless mode on the phone in the tests: its extras, its result, real inference."""

import hashlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

from benchmark_model import invoke, load, memory_mb

PACKAGE = "com.mobileprune.demo"


def main() -> None:
    words = sys.argv[1:]
    extras = {words[at + 1]: words[at + 2] for at in range(len(words) - 2) if words[at] in ("--es", "--ei", "--ez")}
    phone = Path(os.environ["PHONE"])
    conduct = (phone / "app_conduct").read_text() if (phone / "app_conduct").exists() else ""
    target = phone / "sdcard/Android/data" / PACKAGE / "files" / extras["out"]
    target.parent.mkdir(parents=True, exist_ok=True)
    if conduct == "crash":
        (phone / "logcat").write_text("E AndroidRuntime: FATAL EXCEPTION: main\nE AndroidRuntime: OutOfMemoryError\n")
        os.abort()
    before = memory_mb()
    interpreter, init_us = load(extras["model"], int(extras["threads"]))
    first_us = invoke(interpreter)
    result = {
        "schema": 1,
        "model": hashlib.sha256(Path(extras["model"]).read_bytes()).hexdigest(),
        "runtime": f"LiteRT {version('ai_edge_litert')}",
        "threads": int(extras["threads"]),
        "accelerator": "XNNPACK" if extras["xnnpack"] == "true" else "none",
        "init_ms": init_us / 1e3,
        "first_ms": first_us / 1e3,
        "runs_us": [invoke(interpreter) for _ in range(int(extras["rounds"]))],
        "peak_memory_bytes": round((memory_mb() - before) * 2**20),
        "thermal_before": 0,
        "thermal_after": 0,
        "device": {"model": "Phone", "abi": "arm64-v8a", "soc": "Chip", "android": "14"},
    }
    text = "}{\x1b[31m" if conduct == "rubbish" else json.dumps(result)
    arriving = target.with_suffix(".part")
    arriving.write_text(text)
    arriving.replace(target)


if __name__ == "__main__":
    main()
