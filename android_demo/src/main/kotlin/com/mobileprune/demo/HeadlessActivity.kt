package com.mobileprune.demo

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.util.Log
import android.view.WindowManager
import android.widget.TextView
import com.mobileprune.demo.core.BadAsset
import com.mobileprune.demo.core.BenchmarkResult
import com.mobileprune.demo.engine.fillWithNoise
import com.mobileprune.demo.engine.measure
import java.io.File
import java.io.FileInputStream
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.security.MessageDigest
import org.json.JSONObject

/**
 * A benchmark that a computer asks for:
 *
 *     adb shell am start -W -n com.mobileprune.demo/.HeadlessActivity \
 *         --es model /data/local/tmp/model.tflite --es out result.json --ei threads 1 --ei rounds 100 \
 *         --ez xnnpack true --ez gpu false
 *
 * `model` is an absolute path, or one among the assets (`run/file.tflite`). The result is written to
 * `/sdcard/Android/data/com.mobileprune.demo/files/<out>`, all at once, and logged under the tag `mobileprune`.
 */
class HeadlessActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(TextView(this).apply { setText(R.string.headless_running) })
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        // Made anew by the system: the measurement was asked for once, and is done or goes on.
        if (savedInstanceState == null) start(intent)
    }

    private fun start(intent: Intent) {
        val app = applicationContext
        val name = intent.getStringExtra("out") ?: "result.json"
        val folder = getExternalFilesDir(null)
        Background.run({ write(measured(intent), folder, name) }) {
            if (it is Outcome.Failed) Log.e(TAG, "${app.packageName} cannot write $name: ${it.reason}")
            finishAndRemoveTask()
        }
    }

    /** The result as JSON; of a failure, too. */
    private fun measured(intent: Intent): JSONObject {
        var sha256: String? = null
        val outcome = Background.attempt {
            val path = intent.getStringExtra("model") ?: throw BadAsset("there is no --es model")
            val digest = sha256Of(path).also { sha256 = it }
            val settings = BenchmarkSettings(
                threads = intent.getIntExtra("threads", 1),
                rounds = intent.getIntExtra("rounds", 100),
                xnnpack = intent.getBooleanExtra("xnnpack", true),
                gpu = intent.getBooleanExtra("gpu", false),
            )
            benchmark(applicationContext, map(path), digest, settings) { engine ->
                fillWithNoise(engine)
                Measured(measure(settings.rounds, engine::invoke))
            }
        }
        return when (outcome) {
            is Outcome.Done -> outcome.value.toJson()
            is Outcome.Failed -> BenchmarkResult.failure(sha256, outcome.reason)
        }
    }

    /** The file's SHA-256, read as a stream: what is mapped now would not count as the model's memory later. */
    private fun sha256Of(path: String): String {
        val digest = MessageDigest.getInstance("SHA-256")
        val buffer = ByteArray(1 shl 16)
        (if (path.startsWith("/")) FileInputStream(path) else assets.open(path)).use { stream ->
            generateSequence { stream.read(buffer).takeIf { it > 0 } }.forEach { digest.update(buffer, 0, it) }
        }
        return digest.digest().joinToString("") { "%02x".format(it) }
    }

    private fun map(path: String): ByteBuffer =
        if (path.startsWith("/")) {
            FileInputStream(path).channel.use { it.map(FileChannel.MapMode.READ_ONLY, 0, it.size()) }
        } else {
            Library.mapAsset(assets, path)
        }

    private fun write(result: JSONObject, folder: File?, name: String) {
        val text = result.toString()
        // A line of the log ends after 4 kB.
        text.chunked(LOG_CHARS).forEach { Log.i(TAG, it) }
        if (folder == null) throw IOException("there is no external storage")
        if (File(name).name != name) throw IOException("it is no plain file name")
        val part = File(folder, "$name.part")
        part.writeText(text)
        if (!part.renameTo(File(folder, name))) throw IOException("it cannot be renamed into place")
    }

    private companion object {
        const val TAG = "mobileprune"
        const val LOG_CHARS = 3000
    }
}
