package com.mobileprune.demo

import android.graphics.Matrix
import android.graphics.RectF
import android.util.Size
import android.view.Surface
import android.view.TextureView

/**
 * Undoes what a TextureView does to a camera's frames: it stretches them to its own size, and does not know that the
 * screen is turned. All of a frame is shown.
 *
 * @param size of a frame as the camera delivers it, which is wider than high.
 */
fun TextureView.showUndistorted(size: Size, displayRotation: Int) {
    if (width == 0 || height == 0) return
    val matrix = Matrix()
    val view = RectF(0f, 0f, width.toFloat(), height.toFloat())
    val sideways = displayRotation == Surface.ROTATION_90 || displayRotation == Surface.ROTATION_270
    // Frames come in portrait when the screen is not turned.
    val frame = RectF(0f, 0f, size.height.toFloat(), size.width.toFloat())
    frame.offset(view.centerX() - frame.centerX(), view.centerY() - frame.centerY())
    matrix.setRectToRect(view, frame, Matrix.ScaleToFit.FILL)
    val (shownWidth, shownHeight) = if (sideways) size.width to size.height else size.height to size.width
    val scale = minOf(view.width() / shownWidth, view.height() / shownHeight)
    matrix.postScale(scale, scale, view.centerX(), view.centerY())
    matrix.postRotate(-90f * displayRotation, view.centerX(), view.centerY())
    setTransform(matrix)
}
