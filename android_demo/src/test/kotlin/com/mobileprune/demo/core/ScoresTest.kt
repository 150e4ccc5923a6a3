package com.mobileprune.demo.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class ScoresTest {
    @Test
    fun `the best classes are Python's, of equal ones the first`() {
        for (case in Vectors.cases("top_k")) {
            val best = topK(case.floats("scores"), case.getInt("count"), case.getDouble("threshold").toFloat())
            assertEquals(case.getJSONArray("indices").ints().toList(), best.map(Score::index))
        }
    }

    @Test
    fun `NaN is never among the best`() {
        assertEquals(listOf(1), topK(floatArrayOf(Float.NaN, 0.5f, Float.NaN), 3).map(Score::index))
        assertTrue(topK(floatArrayOf(Float.NaN), 1).isEmpty())
    }

    @Test
    fun `softmax is Python's and large logits do not overflow`() {
        for (case in Vectors.cases("softmax")) {
            val scores = case.floats("logits")
            softmax(scores)
            assertArrayEquals(case.floats("probabilities"), scores, 1e-6f)
        }
    }

    @Test
    fun `integers are stored and read back as in Python`() {
        for (case in Vectors.cases("quantize")) {
            val port = case.port("port")
            val reals = case.floats("reals")
            val stored = IntArray(reals.size) { quantize(reals[it], port) }
            assertArrayEquals(case.getJSONArray("stored").ints(), stored)
            val buffer = ByteBuffer.allocateDirect(stored.size)
            stored.forEach { buffer.put(it.toByte()) }
            val back = FloatArray(stored.size)
            dequantize(buffer, port, back)
            assertArrayEquals(case.floats("back"), back, 0f)
        }
    }

    @Test
    fun `pixels enter a model as in Python`() {
        for (case in Vectors.cases("inputs")) {
            val port = case.port("port")
            val contract = Manifest.contract(case.getJSONObject("contract"))
            val expected = case.bytes("expected")
            val buffer = ByteBuffer.allocateDirect(expected.size).order(ByteOrder.LITTLE_ENDIAN)
            InputWriter(contract, port).write(case.bytes("pixels"), buffer)
            val written = ByteArray(expected.size)
            buffer.get(written)
            assertArrayEquals(expected, written)
        }
    }
}
