package com.mobileprune.demo.engine

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class MeasurementTest {
    private var now = 0L

    /** Runs that take so many nanoseconds on a clock of their own, the last one for ever after. */
    private fun runs(vararg nanos: Long): () -> Long {
        var next = 0
        return { nanos[minOf(next++, nanos.size - 1)].also { now += it } }
    }

    @Test
    fun `the first run and the warm-up are apart from those that count`() {
        val seen = mutableListOf<Double>()
        val invoke = runs(9_000_000, 2_000, 2_000, 2_000, 2_000, 2_000, 2_000, 1_000)
        val timings = measure(3, invoke, onRun = { seen += it }, clock = { now })
        assertEquals(9.0, timings.firstMillis, 0.0)
        assertEquals(6, timings.warmUpRuns)
        assertArrayEquals(doubleArrayOf(1.0, 1.0, 1.0), timings.runsMicros, 0.0)
        assertEquals(listOf(1.0, 1.0, 1.0), seen)
    }

    @Test
    fun `warming up ends with its time although nothing settles`() {
        val timings = measure(1, runs(100, 900, 100, 900, 300, 1_000_000), warmUpNanos = 2_000, clock = { now })
        assertEquals(4, timings.warmUpRuns)
    }

    @Test
    fun `who cancels gets no result`() {
        var left = 4
        assertThrows(Cancelled::class.java) { measure(100, { 1_000 }, isCancelled = { left-- == 0 }) }
    }

    @Test
    fun `without a round there is nothing to measure`() {
        assertThrows(IllegalArgumentException::class.java) { measure(0, { 1_000 }) }
    }
}
