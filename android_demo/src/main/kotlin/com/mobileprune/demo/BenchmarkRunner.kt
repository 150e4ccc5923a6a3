package com.mobileprune.demo

import android.content.Context
import com.mobileprune.demo.core.BenchmarkResult
import com.mobileprune.demo.core.GoldenImage
import com.mobileprune.demo.core.InputWriter
import com.mobileprune.demo.core.Manifest
import com.mobileprune.demo.core.Preprocessor
import com.mobileprune.demo.core.dequantize
import com.mobileprune.demo.core.softmax
import com.mobileprune.demo.core.topK
import com.mobileprune.demo.engine.Cancelled
import com.mobileprune.demo.engine.Engine
import com.mobileprune.demo.engine.measure

/** Where a benchmark is. */
sealed class BenchmarkState {
    object Idle : BenchmarkState()

    class Running(val rounds: Int) : BenchmarkState()

    /** [fallback] is why the GPU was not used where it was wanted; null otherwise. */
    class Finished(val result: BenchmarkResult, val fallback: String?) : BenchmarkState()

    object Stopped : BenchmarkState()

    class Failed(val reason: String) : BenchmarkState()
}

/**
 * The benchmark that is going on and what the last one found. It belongs to the process, so that turning the phone or
 * changing the screen does not end it.
 */
object BenchmarkRunner {
    /** Main thread only. */
    var state: BenchmarkState = BenchmarkState.Idle
        private set

    @Volatile
    private var cancelled = false

    // Written in the background, read by the screen while it goes on; the lock is the array.
    private val millis = DoubleArray(MOST_ROUNDS)
    private var count = 0

    /** The runs so far, in milliseconds. */
    fun times(): DoubleArray = synchronized(millis) { millis.copyOf(count) }

    fun start(context: Context, library: Library, choice: Choice, settings: BenchmarkSettings) {
        val app = context.applicationContext
        cancelled = false
        synchronized(millis) { count = 0 }
        state = BenchmarkState.Running(settings.rounds)
        Background.run({ withFallback(app, library, choice, settings) }) {
            state = when (it) {
                is Outcome.Done -> it.value
                is Outcome.Failed -> BenchmarkState.Failed(it.reason)
            }
        }
    }

    fun stop() {
        cancelled = true
    }

    private fun withFallback(
        app: Context, library: Library, choice: Choice, wanted: BenchmarkSettings,
    ): BenchmarkState {
        try {
            if (!wanted.gpu) return BenchmarkState.Finished(run(app, library, choice, wanted), null)
            return when (val onGpu = Background.attempt { run(app, library, choice, wanted) }) {
                is Outcome.Done -> BenchmarkState.Finished(onGpu.value, null)
                is Outcome.Failed -> {
                    synchronized(millis) { count = 0 }
                    val onCpu = BenchmarkSettings(wanted.threads, wanted.rounds, wanted.xnnpack, gpu = false)
                    BenchmarkState.Finished(run(app, library, choice, onCpu), onGpu.reason)
                }
            }
        } catch (_: Cancelled) {
            return BenchmarkState.Stopped
        }
    }

    private fun run(app: Context, library: Library, choice: Choice, settings: BenchmarkSettings): BenchmarkResult {
        val manifest = choice.run.manifest
        val image = library.golden(choice.run).images.first()
        val bytes = library.bytes("${choice.run.entry.folder}/${image.file}")
        return benchmark(app, library.map(choice.path), choice.variant.sha256, settings) { engine ->
            val before = preprocessing(bytes, image, manifest, engine)
            val timings = measure(settings.rounds, engine::invoke, { cancelled }, ::keep)
            Measured(timings, before, postprocessing(manifest, engine))
        }
    }

    /** Times everything from decoded pixels to the filled input, and leaves a real picture in it. */
    private fun preprocessing(bytes: ByteArray, image: GoldenImage, manifest: Manifest, engine: Engine): DoubleArray {
        val preprocessor = Preprocessor(manifest.contract)
        val writer = InputWriter(manifest.contract, engine.inputPort)
        require(engine.input.capacity() % manifest.contract.size == 0) { "${image.file} does not fit the input" }
        return Pictures.open(bytes, manifest.contract).use { raster ->
            micros { writer.write(preprocessor.pixels(raster.upright), engine.input) }
        }
    }

    /** Times everything from the output to the best classes. */
    private fun postprocessing(manifest: Manifest, engine: Engine): DoubleArray {
        val scores = FloatArray(manifest.labels.size)
        return micros {
            dequantize(engine.output, engine.outputPort, scores)
            if (manifest.logits) softmax(scores)
            topK(scores, 5)
        }
    }

    private fun keep(micros: Double) = synchronized(millis) { millis[count++] = micros / 1e3 }

    private fun micros(work: () -> Unit): DoubleArray {
        work() // buffers are made and code is compiled the first time
        return DoubleArray(PROCESSING_ROUNDS) {
            val start = System.nanoTime()
            work()
            (System.nanoTime() - start) / 1e3
        }
    }

    private const val MOST_ROUNDS = 20_000
    private const val PROCESSING_ROUNDS = 20
}
