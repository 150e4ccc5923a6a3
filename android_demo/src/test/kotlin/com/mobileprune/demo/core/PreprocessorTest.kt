package com.mobileprune.demo.core

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Test

class PreprocessorTest {
    private fun raster(width: Int, height: Int, rgba: ByteArray): Raster =
        ArrayRaster(width, height, IntArray(width * height) { pixel ->
            val (red, green, blue, alpha) = List(4) { rgba[4 * pixel + it].toInt() and 0xFF }
            alpha shl 24 or (red shl 16) or (green shl 8) or blue
        })

    @Test
    fun `every picture becomes Python's bytes`() {
        for (case in Vectors.cases("pictures")) {
            val contract = Manifest.contract(case.getJSONObject("contract"))
            val raster = raster(case.getInt("width"), case.getInt("height"), case.bytes("rgba"))
            val pixels = Preprocessor(contract).pixels(Upright(raster, case.getInt("orientation")))
            assertArrayEquals(case.toString(), case.bytes("expected"), pixels)
            assertArrayEquals(case.floats("grid"), gridMeans(pixels, contract), 1e-3f)
        }
    }

    @Test
    fun `pictures of other sizes take turns`() {
        val cases = Vectors.cases("pictures").take(2)
        val contract = Manifest.contract(cases[0].getJSONObject("contract"))
        val preprocessor = Preprocessor(contract)
        val pictures = cases.map { Upright(raster(it.getInt("width"), it.getInt("height"), it.bytes("rgba")), 6) } +
            Upright(ArrayRaster(1, 2, intArrayOf(-1, -1)), 1)
        val first = preprocessor.pixels(pictures[0]).copyOf()
        preprocessor.pixels(pictures[2])
        assertArrayEquals(first, preprocessor.pixels(pictures[0]))
    }

    @Test
    fun `each orientation moves the corner where EXIF says`() {
        // 2 columns, 3 rows; the value is the place.
        val raster = ArrayRaster(2, 3, IntArray(6) { it })
        val firstRows = (1..8).map { orientation ->
            val upright = Upright(raster, orientation)
            IntArray(upright.width).also { upright.readRow(0, it) }.toList()
        }
        assertEquals(
            listOf(
                listOf(0, 1), listOf(1, 0), listOf(5, 4), listOf(4, 5),
                listOf(0, 2, 4), listOf(4, 2, 0), listOf(5, 3, 1), listOf(1, 3, 5),
            ),
            firstRows,
        )
    }

    @Test
    fun `a filter without antialias reads two neighbours only`() {
        val line = ByteArray(8) { (it * 10).toByte() }
        val plain = ByteArray(2).also { Resampling(8, 2, antialias = false).line(line, 0, 1, it, 0, 1) }
        val smooth = ByteArray(2).also { Resampling(8, 2, antialias = true).line(line, 0, 1, it, 0, 1) }
        assertArrayEquals(byteArrayOf(15, 55), plain)
        assertFalse(plain.contentEquals(smooth))
    }
}
