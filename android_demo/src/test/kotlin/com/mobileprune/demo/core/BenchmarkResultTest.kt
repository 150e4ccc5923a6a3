package com.mobileprune.demo.core

import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class BenchmarkResultTest {
    private val result = BenchmarkResult(
        sha256 = "ab".repeat(32),
        runtime = "TensorFlow Lite 2.16.1",
        threads = 2,
        accelerator = "XNNPACK",
        initMillis = 1.25,
        firstMillis = 3.5,
        runsMicros = doubleArrayOf(100.0, 101.0005),
        preprocessMicros = doubleArrayOf(40.0),
        postprocessMicros = doubleArrayOf(2.0),
        peakMemoryBytes = 1 shl 20,
        thermalBefore = null,
        thermalAfter = 1,
        device = DeviceFacts("maker model", "arm64-v8a", "chip", "14"),
    )

    @Test
    fun `what computers read of a result is in its JSON`() {
        val json = JSONObject(result.toJson().toString())
        assertEquals(1, json.getInt("schema"))
        assertEquals("ab".repeat(32), json.getString("sha256"))
        assertEquals(2, json.getInt("threads"))
        assertEquals("XNNPACK", json.getString("accelerator"))
        assertEquals(listOf(100.0, 101.001), json.getJSONArray("runs_us").doubles().toList())
        assertEquals(1048576, json.getLong("peak_memory_bytes"))
        assertTrue(json.isNull("thermal_before"))
        assertEquals(1, json.getInt("thermal_after"))
        assertEquals("arm64-v8a", json.getJSONObject("device").getString("abi"))
    }

    @Test
    fun `a failure says what and of which file`() {
        val json = BenchmarkResult.failure(null, "no such file")
        assertEquals("no such file", json.getString("error"))
        assertTrue(json.isNull("sha256"))
    }
}
