package com.mobileprune.demo.core

import java.nio.ByteBuffer

/** One plane of a camera's frame: bytes that lie [rowStride] and [pixelStride] apart. */
class Plane(val bytes: ByteBuffer, val rowStride: Int, val pixelStride: Int)

/** Frames of a camera, one after another, in one buffer. */
class YuvRaster(override val width: Int, override val height: Int) : Raster {
    private val pixels = IntArray(width * height)
    private val luma = ByteArray(width)
    private val blue = ByteArray((width + 1) / 2)
    private val red = ByteArray((width + 1) / 2)

    /** Takes over a frame in YUV 4:2:0, JPEG's full range (ITU-R BT.601). */
    fun load(lumaPlane: Plane, bluePlane: Plane, redPlane: Plane) {
        for (row in 0 until height) {
            lumaPlane.copyRow(row, luma)
            if (row % 2 == 0) {
                bluePlane.copyRow(row / 2, blue)
                redPlane.copyRow(row / 2, red)
            }
            for (x in 0 until width) {
                val u = (blue[x / 2].toInt() and 0xFF) - 128
                val v = (red[x / 2].toInt() and 0xFF) - 128
                pixels[row * width + x] = argb(luma[x].toInt() and 0xFF, u, v)
            }
        }
    }

    override fun readRow(y: Int, into: IntArray) {
        pixels.copyInto(into, 0, y * width, (y + 1) * width)
    }

    override fun readColumn(x: Int, into: IntArray) {
        for (y in 0 until height) into[y] = pixels[y * width + x]
    }

    private fun Plane.copyRow(row: Int, into: ByteArray) {
        var at = row * rowStride
        for (i in into.indices) {
            into[i] = bytes.get(at)
            at += pixelStride
        }
    }

    private companion object {
        /** In 16-bit fixed point, rounded. */
        fun argb(y: Int, u: Int, v: Int): Int {
            val base = (y shl 16) + 32768
            val red = (base + 91881 * v shr 16).coerceIn(0, 255)
            val green = (base - 22554 * u - 46802 * v shr 16).coerceIn(0, 255)
            val blue = (base + 116130 * u shr 16).coerceIn(0, 255)
            return (0xFF shl 24) or (red shl 16) or (green shl 8) or blue
        }
    }
}
