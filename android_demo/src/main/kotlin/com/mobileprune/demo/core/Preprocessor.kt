package com.mobileprune.demo.core

/**
 * Carries out a contract from decoded pixels on: colours, fit and resize. What comes out are the numbers that Python
 * computes, to the bit; only decoders may differ.
 *
 * Filters and buffers are kept for the size of picture that came last, so frames of a camera allocate nothing.
 * Not for several threads at once.
 */
class Preprocessor(private val contract: Contract) {
    private val channels = contract.color.channels
    private val result = ByteArray(contract.size)
    private var frame: Frame? = null

    /** The uint8 input, rows of columns of channels; valid until the next call. */
    fun pixels(picture: Upright): ByteArray {
        val known = frame?.takeIf { it.width == picture.width && it.height == picture.height }
        val frame = known ?: Frame(picture.width, picture.height).also { this.frame = it }
        frame.read(picture)
        return result
    }

    /** What depends on the size of the picture. */
    private inner class Frame(val width: Int, val height: Int) {
        private val columns: Int
        private val rows: Int

        init {
            val wide = width.toLong() * contract.height > height.toLong() * contract.width
            columns = if (contract.fit == Fit.CROP && wide) part(height, contract.width, contract.height) else width
            rows = if (contract.fit == Fit.CROP && !wide) part(width, contract.height, contract.width) else height
        }

        private val left = (width - columns) / 2
        private val top = (height - rows) / 2
        private val argb = IntArray(width)
        private val line = ByteArray(columns * channels)
        private val across = Resampling(columns, contract.width, contract.antialias).takeIf { it.length != it.size }
        private val down = Resampling(rows, contract.height, contract.antialias).takeIf { it.length != it.size }

        // Every row, already as wide as the input.
        private val narrow = if (down == null) result else ByteArray(rows * contract.width * channels)

        fun read(picture: Upright) {
            val stride = contract.width * channels
            for (row in 0 until rows) {
                picture.readRow(top + row, argb)
                if (across == null) {
                    colors(narrow, row * stride)
                } else {
                    colors(line, 0)
                    for (channel in 0 until channels) {
                        across.line(line, channel, channels, narrow, row * stride + channel, channels)
                    }
                }
            }
            if (down != null) {
                for (at in 0 until stride) down.line(narrow, at, stride, result, at, stride)
            }
        }

        /** The row's kept part in the model's colours, alpha over white. */
        private fun colors(into: ByteArray, start: Int) {
            var at = start
            for (x in left until left + columns) {
                val pixel = argb[x]
                val alpha = pixel ushr 24
                var red = pixel shr 16 and 0xFF
                var green = pixel shr 8 and 0xFF
                var blue = pixel and 0xFF
                if (alpha != 255) {
                    red = overWhite(red, alpha)
                    green = overWhite(green, alpha)
                    blue = overWhite(blue, alpha)
                }
                if (channels == 3) {
                    into[at++] = red.toByte()
                    into[at++] = green.toByte()
                    into[at++] = blue.toByte()
                } else {
                    into[at++] = (19595 * red + 38470 * green + 7471 * blue + 32768 shr 16).toByte()
                }
            }
        }
    }

    private companion object {
        fun overWhite(color: Int, alpha: Int): Int = (color * alpha + 255 * (255 - alpha) + 127) / 255

        /** The length that belongs to [other] where the input has [wanted] for [given]; at least 1. */
        fun part(other: Int, wanted: Int, given: Int): Int =
            maxOf(1, ((2L * other * wanted + given) / (2L * given)).toInt())
    }
}
