package com.mobileprune.demo

import android.content.Context
import com.mobileprune.demo.core.BenchmarkResult
import com.mobileprune.demo.engine.Engine
import com.mobileprune.demo.engine.EngineSettings
import com.mobileprune.demo.engine.Timings
import java.nio.ByteBuffer

/** What is to be measured. */
class BenchmarkSettings(val threads: Int, val rounds: Int, val xnnpack: Boolean, val gpu: Boolean) {
    init {
        require(threads in 1..64) { "threads is $threads; 1 to 64 can be used" }
        require(rounds in 1..20_000) { "runs is $rounds; 1 to 20,000 can be timed" }
    }
}

/**
 * One benchmark of a file on this phone: loads it, has [time] time it, and says all that a result says. In the
 * background only.
 *
 * @param time gets the engine; the input is its to fill.
 */
fun benchmark(
    context: Context,
    model: ByteBuffer,
    sha256: String,
    settings: BenchmarkSettings,
    time: (Engine) -> Measured,
): BenchmarkResult {
    val delegate = if (settings.gpu) Gpu.delegate() else null
    try {
        val memory = MemoryWatch()
        val thermalBefore = Device.thermalStatus(context)
        val how = EngineSettings(settings.threads, settings.xnnpack && delegate == null, delegate)
        return Engine(model, how).use { engine ->
            val measured = time(engine)
            val peakMemory = memory.rise()
            BenchmarkResult(
                sha256 = sha256,
                runtime = Device.runtime,
                threads = settings.threads,
                accelerator = how.accelerator,
                initMillis = engine.initMillis,
                firstMillis = measured.timings.firstMillis,
                runsMicros = measured.timings.runsMicros,
                preprocessMicros = measured.preprocessMicros,
                postprocessMicros = measured.postprocessMicros,
                peakMemoryBytes = peakMemory,
                thermalBefore = thermalBefore,
                thermalAfter = Device.thermalStatus(context),
                device = Device.facts,
            )
        }
    } finally {
        delegate?.close()
    }
}

/** The runtime's timings, and what preparing a picture and reading the answer took, where that was timed. */
class Measured(
    val timings: Timings,
    val preprocessMicros: DoubleArray = DoubleArray(0),
    val postprocessMicros: DoubleArray = DoubleArray(0),
)
