package com.mobileprune.demo

import android.annotation.SuppressLint
import android.content.Context
import android.graphics.ImageFormat
import android.graphics.SurfaceTexture
import android.hardware.camera2.CameraAccessException
import android.hardware.camera2.CameraCaptureSession
import android.hardware.camera2.CameraCharacteristics
import android.hardware.camera2.CameraDevice
import android.hardware.camera2.CameraManager
import android.hardware.camera2.CaptureRequest
import android.media.Image
import android.media.ImageReader
import android.util.Size
import android.view.Surface
import com.mobileprune.demo.core.Plane
import com.mobileprune.demo.core.Upright
import com.mobileprune.demo.core.YuvRaster

/**
 * One camera, open from [start] until [close]; frames come one at a time, the newest each time, in the background.
 *
 * @param onFrame gets each frame upright; valid until it returns.
 * @param onError gets a reason, on the main thread, when the camera is lost.
 */
class Camera private constructor(
    private val manager: CameraManager,
    private val id: String,
    rotation: Int,
    val size: Size,
    private val onFrame: (Upright) -> Unit,
    private val onError: (String) -> Unit,
) : AutoCloseable {
    private val raster = YuvRaster(size.width, size.height)
    private val upright = Upright(raster, orientationOf(rotation))

    // Two: one is being looked at while the next one is written.
    private val reader = ImageReader.newInstance(size.width, size.height, ImageFormat.YUV_420_888, 2)
    private var device: CameraDevice? = null
    private var surface: Surface? = null

    // Set on the main thread, read in the background.
    @Volatile
    private var closed = false

    /** Opens the camera and shows what it sees on [preview]. The permission must have been given. */
    @SuppressLint("MissingPermission")
    fun start(preview: SurfaceTexture) {
        preview.setDefaultBufferSize(size.width, size.height)
        surface = Surface(preview)
        reader.setOnImageAvailableListener({ it.acquireLatestImage()?.use(::look) }, Background.handler)
        try {
            manager.openCamera(id, Opened(), null)
        } catch (error: CameraAccessException) {
            onError(error.message ?: "it is in use")
        }
    }

    override fun close() {
        closed = true
        device?.close()
        device = null
        surface?.release()
        // Where frames are looked at, so that none is read after its memory has gone.
        Background.handler.post(reader::close)
    }

    private fun look(image: Image) {
        if (closed) return
        val (y, u, v) = image.planes.map { Plane(it.buffer, it.rowStride, it.pixelStride) }
        raster.load(y, u, v)
        onFrame(upright)
    }

    private inner class Opened : CameraDevice.StateCallback() {
        override fun onOpened(camera: CameraDevice) {
            val shown = surface
            if (closed || shown == null) {
                camera.close()
                return
            }
            device = camera
            try {
                // The list of surfaces is all that Android 7 knows; later ones still take it.
                @Suppress("DEPRECATION")
                camera.createCaptureSession(listOf(shown, reader.surface), Configured(camera, shown), null)
            } catch (error: CameraAccessException) {
                lost(camera, error.message ?: "it was lost")
            }
        }

        override fun onDisconnected(camera: CameraDevice) = lost(camera, "another app has taken it")

        override fun onError(camera: CameraDevice, error: Int) = lost(camera, "error $error")
    }

    private inner class Configured(private val camera: CameraDevice, private val shown: Surface) :
        CameraCaptureSession.StateCallback() {
        override fun onConfigured(session: CameraCaptureSession) {
            if (closed) return
            try {
                val request = camera.createCaptureRequest(CameraDevice.TEMPLATE_PREVIEW).apply {
                    addTarget(shown)
                    addTarget(reader.surface)
                    set(CaptureRequest.CONTROL_AF_MODE, CaptureRequest.CONTROL_AF_MODE_CONTINUOUS_PICTURE)
                }
                session.setRepeatingRequest(request.build(), null, null)
            } catch (error: CameraAccessException) {
                lost(camera, error.message ?: "it was lost")
            } catch (error: IllegalStateException) { // closed by the system in the meantime
                lost(camera, error.message ?: "it was closed")
            }
        }

        override fun onConfigureFailed(session: CameraCaptureSession) = lost(camera, "it cannot be set up")
    }

    private fun lost(camera: CameraDevice, reason: String) {
        camera.close()
        device = null
        if (!closed) onError(reason)
    }

    companion object {
        private const val WANTED_PIXELS = 640 * 480

        /**
         * The camera that looks away from the user, else any; null if there is none.
         *
         * @param displayRotation how far the screen is turned, one of `Surface.ROTATION_0` and so on.
         */
        fun find(
            context: Context, displayRotation: Int, onFrame: (Upright) -> Unit, onError: (String) -> Unit,
        ): Camera? {
            val manager = context.getSystemService(CameraManager::class.java) ?: return null
            try {
                val known = manager.cameraIdList.associateWith(manager::getCameraCharacteristics)
                val (id, facts) = known.entries.minByOrNull { (_, facts) ->
                    if (facts.get(CameraCharacteristics.LENS_FACING) == CameraCharacteristics.LENS_FACING_BACK) 0 else 1
                } ?: return null
                val size = facts.get(CameraCharacteristics.SCALER_STREAM_CONFIGURATION_MAP)
                    ?.getOutputSizes(ImageFormat.YUV_420_888)
                    ?.minByOrNull { Math.abs(it.width * it.height - WANTED_PIXELS) } ?: return null
                val sensor = facts.get(CameraCharacteristics.SENSOR_ORIENTATION) ?: 0
                val front = facts.get(CameraCharacteristics.LENS_FACING) == CameraCharacteristics.LENS_FACING_FRONT
                val display = displayRotation * 90
                val rotation = (if (front) sensor + display else sensor - display + 360) % 360
                return Camera(manager, id, rotation, size, onFrame, onError)
            } catch (error: CameraAccessException) {
                onError(error.message ?: "it is in use")
                return null
            }
        }

        /** EXIF's number for a picture that must be turned clockwise by so many degrees. */
        private fun orientationOf(degrees: Int): Int = when (degrees) {
            90 -> 6
            180 -> 3
            270 -> 8
            else -> 1
        }
    }
}
