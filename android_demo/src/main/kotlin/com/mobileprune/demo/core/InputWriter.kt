package com.mobileprune.demo.core

import java.nio.ByteBuffer

/**
 * Writes uint8 pixels to a model's input buffer in its number type: normalised, and quantized where the file takes
 * integers. All 256 values of each channel are computed beforehand.
 */
class InputWriter(contract: Contract, port: Port) {
    private val channels = contract.color.channels
    private val floats: Array<FloatArray>?
    private val bytes: Array<ByteArray>?

    init {
        val normalised = Array(channels) { channel ->
            FloatArray(256) { (it - contract.mean[channel]) / contract.std[channel] }
        }
        floats = if (port.isFloat) normalised else null
        bytes = if (port.isFloat) null else Array(channels) { channel ->
            ByteArray(256) { quantize(normalised[channel][it], port).toByte() }
        }
    }

    /** Fills [into] from its start; it is rewound after. */
    fun write(pixels: ByteArray, into: ByteBuffer) {
        into.rewind()
        var channel = 0
        for (pixel in pixels) {
            val value = pixel.toInt() and 0xFF
            if (floats != null) into.putFloat(floats[channel][value]) else into.put(bytes!![channel][value])
            if (++channel == channels) channel = 0
        }
        into.rewind()
    }
}

/** The stored integer nearest to [real], halves to even, as far as the type reaches. */
fun quantize(real: Float, port: Port): Int {
    val (least, most) = if (port.dtype == "uint8") 0 to 255 else -128 to 127
    return (Math.rint((real / port.scale).toDouble()).toLong() + port.zeroPoint).coerceIn(least.toLong(), most.toLong())
        .toInt()
}
