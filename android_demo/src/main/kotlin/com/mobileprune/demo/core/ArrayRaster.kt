package com.mobileprune.demo.core

/** Pixels in an array, row after row. */
class ArrayRaster(override val width: Int, override val height: Int, private val pixels: IntArray) : Raster {
    init {
        require(pixels.size == width * height) { "${pixels.size} pixels are not $width × $height" }
    }

    override fun readRow(y: Int, into: IntArray) {
        pixels.copyInto(into, 0, y * width, (y + 1) * width)
    }

    override fun readColumn(x: Int, into: IntArray) {
        for (y in 0 until height) into[y] = pixels[y * width + x]
    }
}
