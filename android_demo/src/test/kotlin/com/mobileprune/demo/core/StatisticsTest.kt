package com.mobileprune.demo.core

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class StatisticsTest {
    @Test
    fun `percentiles are the host's`() {
        for (case in Vectors.cases("percentiles")) {
            val found = percentiles(case.getJSONArray("millis").doubles())
            assertEquals(case.getDouble("p50"), found.p50, 1e-9)
            assertEquals(case.getDouble("p90"), found.p90, 1e-9)
            assertEquals(case.getDouble("p99"), found.p99, 1e-9)
        }
    }

    @Test
    fun `without a duration there is no percentile`() {
        assertThrows(IllegalArgumentException::class.java) { percentiles(DoubleArray(0)) }
    }

    @Test
    fun `timings settle when two windows agree`() {
        assertFalse(isSettled(listOf(1.0, 1.0, 1.0, 1.0, 1.0)))
        assertTrue(isSettled(listOf(9.0, 1.0, 1.0, 1.0, 1.04, 1.0, 1.04)))
        assertFalse(isSettled(listOf(2.0, 2.0, 2.0, 1.0, 1.0, 1.0)))
    }

    @Test
    fun `a histogram counts every value once`() {
        assertArrayEquals(intArrayOf(2, 0, 0, 1), histogram(doubleArrayOf(1.0, 5.0, 1.5), 4))
        assertArrayEquals(intArrayOf(3, 0), histogram(doubleArrayOf(2.0, 2.0, 2.0), 2))
        assertArrayEquals(intArrayOf(0, 0), histogram(DoubleArray(0), 2))
    }
}
