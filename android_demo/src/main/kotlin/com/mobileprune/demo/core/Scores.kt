package com.mobileprune.demo.core

import java.nio.ByteBuffer

/** One of the best classes. */
class Score(val index: Int, val value: Float)

/** Reads a model's output in real numbers to [into]; [from] is read from its start. */
fun dequantize(from: ByteBuffer, port: Port, into: FloatArray) {
    from.rewind()
    for (i in into.indices) {
        into[i] = when (port.dtype) {
            "float32" -> from.getFloat()
            "uint8" -> ((from.get().toInt() and 0xFF) - port.zeroPoint) * port.scale
            else -> (from.get() - port.zeroPoint) * port.scale
        }
    }
}

/** Logits become probabilities, in place. */
fun softmax(scores: FloatArray) {
    val highest = scores.max()
    var sum = 0.0
    for (i in scores.indices) {
        val power = Math.exp((scores[i] - highest).toDouble())
        scores[i] = power.toFloat()
        sum += power
    }
    for (i in scores.indices) scores[i] = (scores[i] / sum).toFloat()
}

/** The [count] best classes, best first, of equal ones the first; those below [threshold] are left out. */
fun topK(scores: FloatArray, count: Int, threshold: Float = Float.NEGATIVE_INFINITY): List<Score> {
    val best = ArrayList<Score>(count + 1)
    for (i in scores.indices) {
        val score = scores[i]
        if (score.isNaN() || score < threshold) continue
        if (best.size == count && score <= best.last().value) continue
        var at = best.size
        while (at > 0 && best[at - 1].value < score) at--
        best.add(at, Score(i, score))
        if (best.size > count) best.removeAt(count)
    }
    return best
}
