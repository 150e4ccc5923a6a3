package com.mobileprune.demo.core

/**
 * The bilinear filter for lines of [length] samples that become [size]: which samples each position reads, and how much
 * each of them weighs, in 22-bit fixed point. The arithmetic is the contract's, step 6, to the bit.
 */
class Resampling(val length: Int, val size: Int, antialias: Boolean) {
    private val first = IntArray(size)
    private val count = IntArray(size)
    private val weights: IntArray
    private val taps: Int

    init {
        val scale = length.toDouble() / size
        val support = if (antialias) maxOf(scale, 1.0) else 1.0
        for (i in 0 until size) {
            val centre = (i + 0.5) * scale
            first[i] = maxOf(0, (centre - support + 0.5).toInt())
            count[i] = minOf(length, (centre + support + 0.5).toInt()) - first[i]
        }
        taps = count.max()
        weights = IntArray(size * taps)
        val line = DoubleArray(taps)
        for (i in 0 until size) {
            val centre = (i + 0.5) * scale
            var sum = 0.0
            for (tap in 0 until count[i]) {
                line[tap] = maxOf(0.0, 1.0 - Math.abs((first[i] + tap - centre + 0.5) / support))
                sum += line[tap]
            }
            for (tap in 0 until count[i]) weights[i * taps + tap] = (line[tap] / sum * (1 shl BITS) + 0.5).toInt()
        }
    }

    /**
     * Filters one line. Samples of a line are [step] bytes apart, in the result [intoStep].
     */
    fun line(from: ByteArray, start: Int, step: Int, into: ByteArray, intoStart: Int, intoStep: Int) {
        for (i in 0 until size) {
            var sum = 1 shl (BITS - 1)
            var at = start + first[i] * step
            val row = i * taps
            for (tap in 0 until count[i]) {
                sum += weights[row + tap] * (from[at].toInt() and 0xFF)
                at += step
            }
            into[intoStart + i * intoStep] = (sum shr BITS).coerceIn(0, 255).toByte()
        }
    }

    private companion object {
        const val BITS = 22
    }
}
