package com.mobileprune.demo.core

/** Durations of single invocations in milliseconds, summarised as mobileprune does on the host. */
class Percentiles(val p50: Double, val p90: Double, val p99: Double)

/** @param millis at least one duration */
fun percentiles(millis: DoubleArray): Percentiles {
    val sorted = millis.sortedArray()
    return Percentiles(percentile(sorted, 50.0), percentile(sorted, 90.0), percentile(sorted, 99.0))
}

/** The value below which [percent] of the [sorted] values lie, linear between neighbours. */
fun percentile(sorted: DoubleArray, percent: Double): Double {
    require(sorted.isNotEmpty()) { "there are no durations; at least one run is needed" }
    val position = percent / 100 * (sorted.size - 1)
    val below = position.toInt()
    val above = minOf(below + 1, sorted.size - 1)
    val part = position - below
    return sorted[below] + (sorted[above] - sorted[below]) * part
}

/**
 * Whether timings have settled: the medians of the last [window] and of the [window] before differ by at most
 * [tolerance], as a share.
 */
fun isSettled(results: List<Double>, window: Int = 3, tolerance: Double = 0.05): Boolean {
    if (results.size < 2 * window) return false
    val last = median(results.takeLast(window))
    val before = median(results.dropLast(window).takeLast(window))
    return Math.abs(last - before) <= tolerance * before
}

fun median(values: List<Double>): Double = percentile(values.toDoubleArray().apply { sort() }, 50.0)

/** How many of [values] fall into each of [bins] equally wide parts between the least and the greatest. */
fun histogram(values: DoubleArray, bins: Int): IntArray {
    val counts = IntArray(bins)
    val least = values.minOrNull() ?: return counts
    val width = (values.max() - least) / bins
    for (value in values) counts[if (width > 0) minOf(bins - 1, ((value - least) / width).toInt()) else 0]++
    return counts
}
