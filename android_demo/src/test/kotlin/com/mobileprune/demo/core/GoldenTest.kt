package com.mobileprune.demo.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test

/** The comparison that the self-test stands on can fail. */
class GoldenTest {
    private val contract = Contract(8, 8, ColorMode.GRAYSCALE, true, Fit.CROP, floatArrayOf(0f), floatArrayOf(1f), true)
    private val pixels = ByteArray(64) { (3 * it).toByte() }
    private val golden = GoldenImage(
        "golden_0.jpg", FloatArray(64) { 3f * it }, 2f,
        mapOf("a.tflite" to floatArrayOf(0.5f, 0.2f, 0.1f)), mapOf("a.tflite" to 0.1f),
    )

    private fun difference(outputs: FloatArray, seen: ByteArray = pixels, variant: String = "a.tflite") =
        golden.firstDifference(seen, contract, variant, outputs)

    @Test
    fun `outputs within the tolerance pass`() {
        assertNull(difference(floatArrayOf(0.5f, 0.2f, 0.1f)))
        assertNull(difference(floatArrayOf(0.45f, 0.25f, 0.15f)))
    }

    @Test
    fun `an output that is off, NaN, or missing is named`() {
        assertTrue(difference(floatArrayOf(0.5f, 0.2f, 0.3f))!!.contains("output 2 is 0.3"))
        assertTrue(difference(floatArrayOf(0.5f, Float.NaN, 0.1f))!!.contains("output 1 is NaN"))
        assertTrue(difference(floatArrayOf(0.5f, 0.2f))!!.contains("2 outputs, not 3"))
        assertTrue(difference(floatArrayOf(0.5f, 0.2f, 0.1f), variant = "b.tflite")!!.contains("b.tflite"))
    }

    @Test
    fun `another picture is told from another answer`() {
        val other = pixels.copyOf().also { it[9] = 100 }
        assertTrue(difference(floatArrayOf(0f, 0f, 0f), other)!!.contains("part 1, 1 of the input"))
    }

    @Test
    fun `a golden file is read`() {
        val text = """{"schema": 1, "runtime": "TensorFlow Lite 2.16.1", "images": [
            {"file": "golden_0.png", "grid": [1.5, 2], "grid_tolerance": 0,
             "outputs": {"a.tflite": [0.25]}, "tolerances": {"a.tflite": 0.5}}]}"""
        val image = Golden.parse(text, "run").images.single()
        assertEquals("golden_0.png", image.file)
        assertEquals(0.25f, image.outputs.getValue("a.tflite").single(), 0f)
        assertEquals(0.5f, image.tolerances.getValue("a.tflite"), 0f)
    }
}
