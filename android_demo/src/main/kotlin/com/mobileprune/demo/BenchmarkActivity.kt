package com.mobileprune.demo

import android.content.Intent
import android.os.Bundle
import android.view.WindowManager
import android.widget.Button
import android.widget.EditText
import android.widget.Spinner
import android.widget.Switch
import android.widget.TextView
import com.mobileprune.demo.core.BenchmarkResult
import com.mobileprune.demo.core.percentile
import com.mobileprune.demo.core.percentiles

/** Measures a file on this phone, as `mobileprune benchmark` does. */
class BenchmarkActivity : Screen() {
    private val message: TextView get() = findViewById(R.id.message)
    private val result: TextView get() = findViewById(R.id.result)
    private val start: Button get() = findViewById(R.id.start)
    private val share: Button get() = findViewById(R.id.share)
    private val histogram: HistogramView get() = findViewById(R.id.histogram)

    private var library: Library? = null
    private var choice: Choice? = null
    private var kept: String? = null

    // The last result as it is shared; it outlives the process.
    private var json: String? = null

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_benchmark)
        // Clocks and cores are slowed down behind a dark screen.
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        start.isEnabled = false
        start.setOnClickListener { startOrStop() }
        share.setOnClickListener { json?.let(::send) }
        Gpu.missing?.let { reason ->
            findViewById<Switch>(R.id.gpu).apply {
                isEnabled = false
                text = getString(R.string.gpu_missing, reason)
            }
        }
        if (savedInstanceState != null) {
            kept = savedInstanceState.getString(ModelPicker.KEY)
            json = savedInstanceState.getString(JSON)
            result.text = savedInstanceState.getString(RESULT)
            share.isEnabled = json != null
        }
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        outState.putString(ModelPicker.KEY, choice?.path ?: kept)
        outState.putString(JSON, json)
        outState.putString(RESULT, result.text.toString())
    }

    override fun onLibrary(library: Library) {
        this.library = library
        ModelPicker.fill(findViewById<Spinner>(R.id.model), library.choices, kept) { choice = it }
        start.isEnabled = true
    }

    override fun onFailure(reason: String) {
        message.text = getString(R.string.failed, reason)
    }

    override fun onResume() {
        super.onResume()
        show()
    }

    override fun onPause() {
        message.removeCallbacks(again)
        super.onPause()
    }

    private fun startOrStop() {
        val library = library ?: return
        val choice = choice ?: return
        if (BenchmarkRunner.state is BenchmarkState.Running) {
            BenchmarkRunner.stop()
            return
        }
        try {
            val settings = BenchmarkSettings(
                threads = number(R.id.threads),
                rounds = number(R.id.rounds),
                xnnpack = findViewById<Switch>(R.id.xnnpack).isChecked,
                gpu = findViewById<Switch>(R.id.gpu).isChecked,
            )
            json = null
            share.isEnabled = false
            result.text = ""
            BenchmarkRunner.start(this, library, choice, settings)
            show()
        } catch (error: IllegalArgumentException) {
            message.text = getString(R.string.failed, error.message)
        }
    }

    private fun number(id: Int): Int = findViewById<EditText>(id).text.toString().toIntOrNull() ?: 0

    private val again = Runnable { show() }

    /** Brings the screen in line with where the benchmark is; while it goes on, several times a second. */
    private fun show() {
        val state = BenchmarkRunner.state
        val times = BenchmarkRunner.times()
        start.setText(if (state is BenchmarkState.Running) R.string.stop else R.string.start)
        when (state) {
            is BenchmarkState.Idle -> return
            is BenchmarkState.Running -> {
                message.text = if (times.isEmpty()) {
                    getString(R.string.warming_up)
                } else {
                    getString(R.string.running, times.size, state.rounds)
                }
                message.removeCallbacks(again)
                message.postDelayed(again, REFRESH_MILLIS)
            }
            is BenchmarkState.Stopped -> message.text = getString(R.string.stopped)
            is BenchmarkState.Failed -> message.text = getString(R.string.failed, state.reason)
            is BenchmarkState.Finished -> {
                message.text = state.fallback?.let { getString(R.string.gpu_fallback, it) }.orEmpty()
                result.text = describe(state.result)
                json = state.result.toJson().toString(2)
                share.isEnabled = true
            }
        }
        histogram.show(times)
    }

    private fun describe(found: BenchmarkResult): String {
        val runs = percentiles(DoubleArray(found.runsMicros.size) { found.runsMicros[it] / 1e3 })
        val unknown = getString(R.string.unknown)
        return getString(
            R.string.result,
            runs.p50, runs.p90, runs.p99, found.runsMicros.size,
            found.initMillis, found.firstMillis,
            medianMillis(found.preprocessMicros), medianMillis(found.postprocessMicros),
            found.peakMemoryBytes / 1e6,
            found.thermalBefore?.toString() ?: unknown, found.thermalAfter?.toString() ?: unknown,
            found.runtime, found.accelerator, found.threads,
            found.device.model, found.device.soc, found.device.abi, found.device.android,
        )
    }

    private fun medianMillis(micros: DoubleArray): Double = percentile(micros.sortedArray(), 50.0) / 1e3

    private fun send(json: String) {
        val intent = Intent(Intent.ACTION_SEND).setType("application/json").putExtra(Intent.EXTRA_TEXT, json)
        startActivity(Intent.createChooser(intent, getString(R.string.share)))
    }

    private companion object {
        const val JSON = "json"
        const val RESULT = "result"
        const val REFRESH_MILLIS = 150L
    }
}
