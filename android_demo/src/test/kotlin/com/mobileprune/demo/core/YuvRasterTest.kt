package com.mobileprune.demo.core

import java.nio.ByteBuffer
import org.junit.Assert.assertEquals
import org.junit.Test

class YuvRasterTest {
    private fun plane(vararg bytes: Int, rowStride: Int, pixelStride: Int = 1): Plane {
        val buffer = ByteBuffer.allocateDirect(bytes.size)
        bytes.forEach { buffer.put(it.toByte()) }
        return Plane(buffer, rowStride, pixelStride)
    }

    @Test
    fun `rows are padded, and chroma is interleaved and shared by four pixels`() {
        val raster = YuvRaster(3, 2)
        raster.load(
            plane(76, 76, 255, 99, 76, 76, 0, rowStride = 4),
            plane(85, 255, 128, 128, rowStride = 4, pixelStride = 2),
            plane(255, 85, 128, 128, rowStride = 4, pixelStride = 2),
        )
        val row = IntArray(3)
        raster.readRow(0, row)
        // JPEG's red, give or take a rounding; then white.
        assertEquals(listOf(0xFFFE0000.toInt(), 0xFFFE0000.toInt(), 0xFFFFFFFF.toInt()), row.toList())
        val column = IntArray(2)
        raster.readColumn(2, column)
        assertEquals(listOf(0xFFFFFFFF.toInt(), 0xFF000000.toInt()), column.toList())
    }
}
