package com.mobileprune.demo

import android.content.Context
import android.os.Build
import android.os.PowerManager
import com.mobileprune.demo.core.DeviceFacts
import java.io.File
import org.tensorflow.lite.TensorFlowLite

/** What this phone is and how it fares. */
object Device {
    val facts: DeviceFacts by lazy {
        val soc = if (Build.VERSION.SDK_INT >= 31) systemOnChip() else Build.HARDWARE
        DeviceFacts("${Build.MANUFACTURER} ${Build.MODEL}", Build.SUPPORTED_ABIS.first(), soc, Build.VERSION.RELEASE)
    }

    val runtime: String get() = "TensorFlow Lite ${TensorFlowLite.runtimeVersion()}"

    /** Android's thermal status, 0 (none) to 6 (shutdown); null before Android 10. */
    fun thermalStatus(context: Context): Int? {
        if (Build.VERSION.SDK_INT < 29) return null
        return context.getSystemService(PowerManager::class.java).currentThermalStatus
    }

    // Build.SOC_MANUFACTURER and SOC_MODEL, which the platform that this is compiled against does not have.
    private fun systemOnChip(): String = listOf("SOC_MANUFACTURER", "SOC_MODEL").joinToString(" ") {
        try {
            Build::class.java.getField(it).get(null)?.toString().orEmpty()
        } catch (_: ReflectiveOperationException) {
            ""
        }
    }.trim().ifEmpty { Build.HARDWARE }
}

/** How far the process's memory rises from the moment on when this is made. */
class MemoryWatch {
    private val before = read("VmRSS")
    private val highestBefore = read("VmHWM")

    /** Bytes; of the peak if there was a new one, else of what is used now. */
    fun rise(): Long {
        val highest = read("VmHWM")
        return maxOf(0, (if (highest > highestBefore) highest else read("VmRSS")) - before)
    }

    private companion object {
        fun read(name: String): Long =
            File("/proc/self/status").useLines { lines ->
                lines.firstOrNull { it.startsWith("$name:") }?.filter(Char::isDigit)?.toLongOrNull() ?: 0L
            } * 1024
    }
}
