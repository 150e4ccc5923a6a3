package com.mobileprune.demo.core

/** Decoded pixels as they are stored, 0xAARRGGBB with colours not multiplied by alpha. */
interface Raster {
    val width: Int
    val height: Int

    /** Copies row [y] to the start of [into]. */
    fun readRow(y: Int, into: IntArray)

    /** Copies column [x], top to bottom, to the start of [into]. */
    fun readColumn(x: Int, into: IntArray)
}

/**
 * A [raster] turned upright, row by row, so that no second copy of a large photograph is ever in memory.
 *
 * [orientation] is EXIF's: 2 to 8 flip or turn, all other values do nothing.
 */
class Upright(private val raster: Raster, orientation: Int) {
    // 5 to 8 exchange rows and columns.
    private val sideways = orientation in 5..8
    private val linesReversed = orientation in setOf(3, 4, 7, 8)
    private val pixelsReversed = orientation in setOf(2, 3, 6, 7)

    val width: Int = if (sideways) raster.height else raster.width
    val height: Int = if (sideways) raster.width else raster.height

    /** Copies row [y] of the upright picture to the start of [into]. */
    fun readRow(y: Int, into: IntArray) {
        val line = if (linesReversed) height - 1 - y else y
        if (sideways) raster.readColumn(line, into) else raster.readRow(line, into)
        if (pixelsReversed) into.reverse(0, width)
    }
}
