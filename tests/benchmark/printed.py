"""What LiteRT's `benchmark_model` prints, whole and by its lines."""

WARM = "count=9 first=90100 curr=51500 min=51500 max=90100 avg=58000.5 std=12000 p5=51500 median=52000 p95=90100"
RUNS = "count=50 first=52300 curr=50100 min=49500 max=690000 avg=64000.5 std=60900 p5=49900 median=52100 p95=69000"
AVERAGES = "Warmup (avg): 58000.5, Inference (avg): 64000.5"
TIMINGS = f"Inference timings in us: Init: 120500, First inference: 90100, {AVERAGES}"
MEMORY = "Memory footprint delta from the start of the tool (MB): init=55.5 overall=64"
XNNPACK = "Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate."
PARTLY = XNNPACK.replace("completely", "partially").replace("the delegate.", "the delegate w/ 2 delegate kernels.")
NOTHING = "Though XNNPACK delegate is explicitly applied, the model graph will not be executed by the delegate."
PRINTED = f"""INFO: Log parameter values verbosely: [0]
INFO: Loaded model /data/local/tmp/model.tflite
INFO: {XNNPACK}
INFO: Initialized session in 120.5ms.
INFO: {WARM}

INFO: {RUNS}

INFO: {TIMINGS}
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE
INFO: {MEMORY}
"""
