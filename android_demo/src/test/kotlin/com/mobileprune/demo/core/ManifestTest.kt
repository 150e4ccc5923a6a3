package com.mobileprune.demo.core

import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class ManifestTest {
    private val text = Vectors.one("manifest").toString()

    /** The manifest with one change. */
    private fun changed(change: JSONObject.() -> Unit): String = JSONObject(text).apply(change).toString()

    @Test
    fun `Python's manifest is read`() {
        val manifest = Manifest.parse(text, "run")
        val json = JSONObject(text)
        assertEquals(json.getJSONArray("labels").strings(), manifest.labels)
        assertEquals(32, manifest.contract.height)
        val (float32, int8) = manifest.variants
        assertEquals("net_base_float32.tflite", float32.file)
        assertEquals(0.9, float32.accuracy!!, 0.0)
        assertTrue(float32.input.isFloat)
        assertNull(int8.accuracy)
        assertEquals(0.75, int8.agreement!!, 0.0)
        assertEquals("int8", int8.input.dtype)
        assertEquals(0.01f, int8.input.scale, 0f)
        assertEquals(-3, int8.input.zeroPoint)
        assertEquals("net_c50_int8.tflite", manifest.recommended["smallest"])
    }

    @Test
    fun `what cannot be used is refused with the run's name`() {
        val broken = mapOf(
            "not JSON" to "{",
            "another schema" to changed { put("schema", 2) },
            "no labels" to changed { remove("labels") },
            "labels for other outputs" to changed { getJSONArray("labels").put("a third") },
            "another resize" to changed { getJSONObject("preprocess").put("resize", "bicubic") },
            "a size of nothing" to changed { getJSONObject("preprocess").put("height", 0) },
            "a huge size" to changed { getJSONObject("preprocess").put("width", 1_000_000) },
            "a division by 0" to changed { getJSONObject("preprocess").getJSONArray("std").put(0, 0.0) },
            "a file elsewhere" to changed { getJSONArray("variants").getJSONObject(0).put("file", "../x.tflite") },
            "an unknown type" to changed {
                getJSONArray("variants").getJSONObject(0).getJSONObject("input").put("dtype", "int16")
            },
        )
        for ((name, manifest) in broken) {
            val error = assertThrows(name, BadAsset::class.java) { Manifest.parse(manifest, "the run") }
            assertTrue(name, error.message!!.startsWith("the run: "))
        }
    }

    @Test
    fun `an index of runs is read, and folders outside are refused`() {
        val run = JSONObject().put("folder", "a_run").put("title", "A run").put("provenance", "From here.")
        fun index(): String {
            val runs = JSONArray().put(run)
            return JSONObject().put("schema", 1).put("runtime", "TensorFlow Lite").put("runs", runs).toString()
        }
        assertEquals("a_run", RunIndex.parse(index()).runs.single().folder)
        run.put("folder", "../other")
        assertThrows(BadAsset::class.java) { RunIndex.parse(index()) }
    }
}
