package com.mobileprune.demo.core

import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * The EXIF orientation (tag 0x0112) in the bytes of a JPEG, PNG or WebP file.
 *
 * Android's own reader is not used because it also looks for the tag in places that the contract does not name, and
 * differs from version to version.
 */
object Exif {
    /** 1 to 8, or 1 where the file says nothing, or nothing that can be read. */
    fun orientation(file: ByteArray): Int {
        val block = tiffBlock(ByteBuffer.wrap(file)) ?: return UPRIGHT
        return orientationIn(block) ?: UPRIGHT
    }

    const val UPRIGHT = 1

    private const val TAG = 0x0112
    private const val TYPE_BYTE = 1
    private const val TYPE_SHORT = 3
    private const val TYPE_LONG = 4
    private const val ENTRY_BYTES = 12
    private const val JPEG = 0xFFD8
    private const val START_OF_SCAN = 0xDA
    private const val APP1 = 0xE1
    private val PNG = byteArrayOf(0x89.toByte(), 'P'.code.toByte(), 'N'.code.toByte(), 'G'.code.toByte())
    private val HEADER = "Exif\u0000\u0000".toByteArray(Charsets.ISO_8859_1)

    private fun tiffBlock(file: ByteBuffer): ByteBuffer? = when {
        file.limit() < 12 -> null
        file.u16(0) == JPEG -> inJpeg(file)
        file.startsWith(0, PNG) -> inChunks(file, 8, ByteOrder.BIG_ENDIAN, "eXIf", sizeFirst = true)
        file.tag(0) == "RIFF" && file.tag(8) == "WEBP" ->
            inChunks(file, 12, ByteOrder.LITTLE_ENDIAN, "EXIF", sizeFirst = false)
        else -> null
    }

    private fun inJpeg(file: ByteBuffer): ByteBuffer? {
        var at = 2
        while (at + 4 <= file.limit() && file.u8(at) == 0xFF) {
            val marker = file.u8(at + 1)
            if (marker == 0xFF) { // a fill byte
                at++
                continue
            }
            if (marker == START_OF_SCAN) return null
            val size = file.u16(at + 2)
            if (marker == APP1 && file.startsWith(at + 4, HEADER)) return file.part(at + 10, size - 8)
            at += 2 + size
        }
        return null
    }

    /** PNG has a chunk's size before its name and a checksum after it; RIFF has name and size, padded to even. */
    private fun inChunks(
        file: ByteBuffer, start: Int, order: ByteOrder, name: String, sizeFirst: Boolean,
    ): ByteBuffer? {
        var at = start.toLong()
        while (at + 8 <= file.limit()) {
            val here = at.toInt()
            val size = file.order(order).getInt(if (sizeFirst) here else here + 4).toLong() and 0xFFFFFFFFL
            if (file.tag(if (sizeFirst) here + 4 else here) == name) {
                val block = file.part(here + 8, size.coerceAtMost(Int.MAX_VALUE.toLong()).toInt()) ?: return null
                return if (block.startsWith(0, HEADER)) block.part(HEADER.size, block.limit() - HEADER.size) else block
            }
            at += 8 + size + if (sizeFirst) 4L else size % 2
        }
        return null
    }

    private fun orientationIn(tiff: ByteBuffer): Int? {
        if (tiff.limit() < 8) return null
        when (tiff.tag(0).take(2)) {
            "II" -> tiff.order(ByteOrder.LITTLE_ENDIAN)
            "MM" -> tiff.order(ByteOrder.BIG_ENDIAN)
            else -> return null
        }
        val first = tiff.getInt(4)
        if (first < 8 || first > tiff.limit() - 2) return null
        val entries = tiff.getShort(first).toInt() and 0xFFFF
        for (entry in 0 until entries) {
            val at = first + 2 + entry * ENTRY_BYTES
            if (at + ENTRY_BYTES > tiff.limit()) return null
            if ((tiff.getShort(at).toInt() and 0xFFFF) == TAG) {
                // The first value counts; one that lies elsewhere, because there are many, is nothing to go by.
                if (tiff.getInt(at + 4) !in 1..2) return null
                val value = when (tiff.getShort(at + 2).toInt()) {
                    TYPE_BYTE -> tiff.u8(at + 8)
                    TYPE_SHORT -> tiff.getShort(at + 8).toInt() and 0xFFFF
                    TYPE_LONG -> tiff.getInt(at + 8)
                    else -> UPRIGHT
                }
                return value.takeIf { it in 1..8 }
            }
        }
        return null
    }

    private fun ByteBuffer.u8(at: Int): Int = get(at).toInt() and 0xFF

    private fun ByteBuffer.u16(at: Int): Int = u8(at) shl 8 or u8(at + 1)

    private fun ByteBuffer.tag(at: Int): String = CharArray(4) { u8(at + it).toChar() }.concatToString()

    private fun ByteBuffer.startsWith(at: Int, bytes: ByteArray): Boolean =
        at + bytes.size <= limit() && bytes.indices.all { get(at + it) == bytes[it] }

    /** [size] bytes from [at] on, or as many as there are; null where there are none. */
    private fun ByteBuffer.part(at: Int, size: Int): ByteBuffer? {
        if (size <= 0 || at >= limit()) return null
        val copy = duplicate()
        copy.limit(minOf(limit().toLong(), at.toLong() + size).toInt())
        copy.position(at)
        return copy.slice()
    }
}
