package com.mobileprune.demo.core

/** What the model makes of the colours of a picture. */
enum class ColorMode(val channels: Int) { RGB(3), GRAYSCALE(1) }

/** `CROP` cuts the largest centred rectangle of the input's aspect ratio, `STRETCH` resizes everything. */
enum class Fit { CROP, STRETCH }

/**
 * How an encoded picture becomes the model's input, as the manifest says: decode, turn upright, convert the colours,
 * fit, resize, then `(x - mean) / std` on values from 0 to 255. [mean] and [std] have one entry for each channel.
 */
class Contract(
    val height: Int,
    val width: Int,
    val color: ColorMode,
    val antialias: Boolean,
    val fit: Fit,
    val mean: FloatArray,
    val std: FloatArray,
    val exif: Boolean,
) {
    init {
        require(height in 1..MAX_SIDE && width in 1..MAX_SIDE) { "the input is $height × $width pixels" }
        require(mean.size == color.channels && std.size == color.channels) { "mean or std lack a channel" }
        require(std.all { it != 0f && it.isFinite() } && mean.all { it.isFinite() }) { "mean or std means nothing" }
    }

    /** Bytes of one preprocessed picture. */
    val size: Int get() = height * width * color.channels

    private companion object {
        const val MAX_SIDE = 4096
    }
}
