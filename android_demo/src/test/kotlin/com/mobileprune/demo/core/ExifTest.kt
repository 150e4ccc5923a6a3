package com.mobileprune.demo.core

import org.junit.Assert.assertEquals
import org.junit.Test

class ExifTest {
    @Test
    fun `orientations are Pillow's`() {
        for (case in Vectors.cases("exif")) {
            assertEquals(case.getString("name"), case.getInt("orientation"), Exif.orientation(case.bytes("file")))
        }
    }

    @Test
    fun `files cut off or damaged anywhere are read as far as they go`() {
        val file = Vectors.cases("exif").first { it.getString("name") == "JPEG 6" }.bytes("file")
        for (length in 0..file.size) assertEquals(true, Exif.orientation(file.copyOf(length)) in setOf(1, 6))
        for (at in file.indices) {
            val damaged = file.copyOf().also { it[at] = (it[at].toInt() xor 0xFF).toByte() }
            assertEquals(true, Exif.orientation(damaged) in 1..8)
        }
    }
}
