package com.mobileprune.demo.core

import org.json.JSONArray
import org.json.JSONObject

/** The phone, as results name it. */
class DeviceFacts(val model: String, val abi: String, val soc: String, val android: String) {
    fun toJson(): JSONObject =
        JSONObject().put("model", model).put("abi", abi).put("soc", soc).put("android", android)
}

/**
 * One benchmark of one file. `mobileprune benchmark` reads its JSON.
 *
 * [thermalBefore] and [thermalAfter] are Android's thermal status, 0 (none) to 6 (shutdown); null before Android 10.
 */
class BenchmarkResult(
    val sha256: String,
    val runtime: String,
    val threads: Int,
    val accelerator: String,
    val initMillis: Double,
    val firstMillis: Double,
    val runsMicros: DoubleArray,
    val preprocessMicros: DoubleArray,
    val postprocessMicros: DoubleArray,
    val peakMemoryBytes: Long,
    val thermalBefore: Int?,
    val thermalAfter: Int?,
    val device: DeviceFacts,
) {
    fun toJson(): JSONObject = JSONObject()
        .put("schema", SCHEMA)
        .put("model", sha256)
        .put("sha256", sha256)
        .put("runtime", runtime)
        .put("threads", threads)
        .put("accelerator", accelerator)
        .put("init_ms", initMillis)
        .put("first_ms", firstMillis)
        .put("runs_us", array(runsMicros))
        .put("preprocess_us", array(preprocessMicros))
        .put("postprocess_us", array(postprocessMicros))
        .put("peak_memory_bytes", peakMemoryBytes)
        .put("thermal_before", thermalBefore ?: JSONObject.NULL)
        .put("thermal_after", thermalAfter ?: JSONObject.NULL)
        .put("device", device.toJson())

    companion object {
        const val SCHEMA = 1

        /** What is written in the place of a result when there is none. */
        fun failure(sha256: String?, error: String): JSONObject = JSONObject()
            .put("schema", SCHEMA)
            .put("sha256", sha256 ?: JSONObject.NULL)
            .put("error", error)

        private fun array(values: DoubleArray): JSONArray =
            JSONArray().apply { values.forEach { put(Math.round(it * 1000) / 1000.0) } }
    }
}
