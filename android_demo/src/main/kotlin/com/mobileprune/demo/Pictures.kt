package com.mobileprune.demo

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.ColorSpace
import android.graphics.Matrix
import android.net.Uri
import android.os.Build
import com.mobileprune.demo.core.Contract
import com.mobileprune.demo.core.Exif
import com.mobileprune.demo.core.Raster
import com.mobileprune.demo.core.Upright
import java.io.IOException

/** Decoding as the contract wants it: 8 bits, colours not multiplied by alpha, no colour profile applied. */
object Pictures {
    private const val MAX_PIXELS = 64_000_000L
    private const val MAX_BYTES = 256 shl 20
    private const val PREVIEW_SIDE = 1024

    /** @throws IOException it cannot be read, or is too large. */
    fun read(resolver: ContentResolver, uri: Uri): ByteArray {
        val stream = resolver.openInputStream(uri) ?: throw IOException("nothing is there")
        return stream.use {
            val bytes = it.readBytes()
            if (bytes.size > MAX_BYTES) throw IOException("it has ${bytes.size} bytes, at most $MAX_BYTES are read")
            bytes
        }
    }

    /** The decoded [file], to be read upright if the [contract] wants that. */
    fun open(file: ByteArray, contract: Contract): BitmapRaster {
        val size = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        BitmapFactory.decodeByteArray(file, 0, file.size, size)
        if (size.outWidth.toLong() * size.outHeight > MAX_PIXELS) {
            throw IOException("it has ${size.outWidth} × ${size.outHeight} pixels, at most $MAX_PIXELS are decoded")
        }
        val options = BitmapFactory.Options().apply {
            inPreferredConfig = Bitmap.Config.ARGB_8888
            inPremultiplied = false
            inScaled = false
        }
        val bitmap = BitmapFactory.decodeByteArray(file, 0, file.size, options)
            ?: throw IOException("it is no picture that this device can decode")
        // Reading pixels converts them to sRGB from the profile that the file names; said to be sRGB, they stay.
        if (Build.VERSION.SDK_INT >= 29 && bitmap.colorSpace != null) {
            bitmap.setColorSpace(ColorSpace.get(ColorSpace.Named.SRGB))
        }
        return BitmapRaster(bitmap, if (contract.exif) Exif.orientation(file) else Exif.UPRIGHT)
    }

    /** A small upright bitmap for the screen. */
    fun preview(file: ByteArray): Bitmap? {
        val options = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        BitmapFactory.decodeByteArray(file, 0, file.size, options)
        options.inJustDecodeBounds = false
        val longest = maxOf(options.outWidth, options.outHeight)
        options.inSampleSize = 1
        while (longest / options.inSampleSize > PREVIEW_SIDE) options.inSampleSize *= 2
        val bitmap = BitmapFactory.decodeByteArray(file, 0, file.size, options) ?: return null
        val turn = matrixOf(Exif.orientation(file)) ?: return bitmap
        return Bitmap.createBitmap(bitmap, 0, 0, bitmap.width, bitmap.height, turn, true)
    }

    private fun matrixOf(orientation: Int): Matrix? {
        val matrix = Matrix()
        when (orientation) {
            2 -> matrix.setScale(-1f, 1f)
            3 -> matrix.setRotate(180f)
            4 -> matrix.setScale(1f, -1f)
            5 -> matrix.setRotate(90f).also { matrix.postScale(-1f, 1f) }
            6 -> matrix.setRotate(90f)
            7 -> matrix.setRotate(270f).also { matrix.postScale(-1f, 1f) }
            8 -> matrix.setRotate(270f)
            else -> return null
        }
        return matrix
    }
}

/** A bitmap's pixels where they are. [close] gives its memory back at once. */
class BitmapRaster(private val bitmap: Bitmap, orientation: Int) : Raster, AutoCloseable {
    override val width: Int get() = bitmap.width
    override val height: Int get() = bitmap.height

    val upright = Upright(this, orientation)

    override fun readRow(y: Int, into: IntArray) = bitmap.getPixels(into, 0, width, 0, y, width, 1)

    override fun readColumn(x: Int, into: IntArray) = bitmap.getPixels(into, 0, 1, x, 0, 1, height)

    override fun close() = bitmap.recycle()
}
