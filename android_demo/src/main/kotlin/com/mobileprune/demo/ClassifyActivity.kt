package com.mobileprune.demo

import android.Manifest.permission
import android.content.ActivityNotFoundException
import android.content.Intent
import android.content.pm.PackageManager
import android.graphics.Bitmap
import android.graphics.SurfaceTexture
import android.hardware.display.DisplayManager
import android.os.Bundle
import android.view.TextureView
import android.view.View
import android.widget.Button
import android.widget.ImageView
import android.widget.SeekBar
import android.widget.Spinner
import android.widget.TextView
import com.mobileprune.demo.core.Upright

/** Classifies what the camera sees, a picture from the gallery, or a bundled one. */
class ClassifyActivity : Screen(), TextureView.SurfaceTextureListener {
    private val models: Spinner get() = findViewById(R.id.model)
    private val texture: TextureView get() = findViewById(R.id.camera_preview)
    private val picture: ImageView get() = findViewById(R.id.picture_preview)
    private val message: TextView get() = findViewById(R.id.message)
    private val times: TextView get() = findViewById(R.id.times)
    private val scores: ScoresView get() = findViewById(R.id.scores)
    private val threshold: SeekBar get() = findViewById(R.id.threshold)

    private var library: Library? = null
    private var source: Source = Source.Camera
    private var camera: Camera? = null
    private var cameraRotation = 0
    private var resumed = false
    private var asking = false
    private var kept: String? = null
    private var shown: Classified? = null

    // The loaded file; only the background thread touches it.
    private var session: Session? = null

    // What the camera's frames go to; frames of another screen or file are dropped.
    @Volatile
    private var choice: Choice? = null

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_classify)
        source = Source.parse(savedInstanceState?.getString(SOURCE))
        asking = savedInstanceState?.getBoolean(ASKING) ?: false
        kept = savedInstanceState?.getString(ModelPicker.KEY)
        texture.surfaceTextureListener = this
        findViewById<Button>(R.id.use_camera).setOnClickListener { use(Source.Camera) }
        findViewById<Button>(R.id.use_gallery).setOnClickListener { pick() }
        findViewById<Button>(R.id.use_bundled).setOnClickListener { nextBundled() }
        if (savedInstanceState == null) threshold.progress = FIRST_THRESHOLD
        threshold.setOnSeekBarChangeListener(ThresholdListener())
        showThreshold()
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        outState.putString(SOURCE, source.toString())
        outState.putBoolean(ASKING, asking)
        outState.putString(ModelPicker.KEY, choice?.path ?: kept)
    }

    override fun onLibrary(library: Library) {
        this.library = library
        ModelPicker.fill(models, library.choices, kept) { load(library, it) }
    }

    override fun onFailure(reason: String) = say(getString(R.string.failed, reason))

    override fun onResume() {
        super.onResume()
        resumed = true
        getSystemService(DisplayManager::class.java).registerDisplayListener(turns, null)
        if (library != null) show()
    }

    override fun onPause() {
        resumed = false
        getSystemService(DisplayManager::class.java).unregisterDisplayListener(turns)
        stopCamera()
        super.onPause()
    }

    override fun onDestroy() {
        choice = null
        Background.handler.post {
            session?.close()
            session = null
        }
        super.onDestroy()
    }

    private fun load(library: Library, wanted: Choice) {
        choice = wanted
        inBackground({
            session?.close()
            session = null
            session = Session(library, wanted, THREADS)
        }) {
            when (it) {
                is Outcome.Done -> show()
                is Outcome.Failed -> say(getString(R.string.failed, it.reason))
            }
        }
    }

    private fun use(wanted: Source) {
        source = wanted
        asking = false
        show()
    }

    /** Brings the screen in line with what is to be classified. */
    private fun show() {
        say(null)
        val live = source == Source.Camera
        texture.visibility = if (live) View.VISIBLE else View.GONE
        picture.visibility = if (live) View.GONE else View.VISIBLE
        when (val source = source) {
            is Source.Camera -> startCamera()
            is Source.Picked -> classify { Pictures.read(contentResolver, source.uri) }
            is Source.Bundled -> library?.let { library -> classify { library.bytes(source.path) } }
        }
        if (!live) stopCamera()
    }

    private fun classify(read: () -> ByteArray) {
        inBackground({
            val file = read()
            val session = session ?: return@inBackground null
            val result = Pictures.open(file, session.choice.run.manifest.contract).use {
                session.classify(it.upright, SHOWN)
            }
            Triple(session.choice, result, Pictures.preview(file))
        }) {
            when (it) {
                is Outcome.Done -> it.value?.let { (choice, result, preview) -> show(choice, result, preview) }
                is Outcome.Failed -> say(getString(R.string.picture_unreadable, it.reason))
            }
        }
    }

    private fun show(choice: Choice, result: Classified, preview: Bitmap?) {
        picture.setImageBitmap(preview)
        show(choice, result)
    }

    private fun show(choice: Choice, result: Classified) {
        if (choice.path != this.choice?.path) return
        shown = result
        val least = threshold.progress / 100f
        val best = result.best.filter { it.value >= least }
        val labels = choice.run.manifest.labels
        scores.show(best.map { labels[it.index] }, FloatArray(best.size) { best[it].value })
        times.text = if (best.isEmpty()) {
            getString(R.string.nothing_above)
        } else {
            getString(R.string.times, result.preparing, result.running, result.reading)
        }
    }

    private fun startCamera() {
        // A model may have been loaded after the screen was left.
        if (camera != null || choice == null || !resumed) return
        if (checkSelfPermission(permission.CAMERA) != PackageManager.PERMISSION_GRANTED) {
            // Asked once; after that the button asks again.
            if (asking) say(getString(R.string.permission_denied)) else ask()
            return
        }
        val surface = texture.surfaceTexture ?: return // the listener comes back
        cameraRotation = displayRotation()
        val found = Camera.find(this, cameraRotation, ::look, ::lost)
        if (found == null) {
            if (message.visibility == View.GONE) say(getString(R.string.no_camera))
            return
        }
        camera = found
        texture.showUndistorted(found.size, cameraRotation)
        found.start(surface)
    }

    private fun ask() {
        asking = true
        requestPermissions(arrayOf(permission.CAMERA), PERMISSION)
    }

    private fun stopCamera() {
        camera?.close()
        camera = null
    }

    /** A frame, in the background. */
    private fun look(frame: Upright) {
        val session = session?.takeIf { it.choice === choice } ?: return
        val result = session.classify(frame, SHOWN)
        Background.onMain { if (camera != null) show(session.choice, result) }
    }

    private fun lost(reason: String) {
        stopCamera()
        say(getString(R.string.camera_failed, reason))
    }

    override fun onRequestPermissionsResult(requestCode: Int, permissions: Array<String>, grantResults: IntArray) {
        if (requestCode == PERMISSION && source == Source.Camera) show()
    }

    private fun pick() {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*")
        try {
            startActivityForResult(intent, PICK)
        } catch (_: ActivityNotFoundException) {
            say(getString(R.string.no_gallery))
        }
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        val uri = data?.data ?: return
        if (requestCode != PICK || resultCode != RESULT_OK) return
        try {
            // So that it can still be read after the process was ended and made again.
            contentResolver.takePersistableUriPermission(uri, Intent.FLAG_GRANT_READ_URI_PERMISSION)
        } catch (_: SecurityException) {
            // This app's permission lasts for now, and that is all that is needed to classify it.
        }
        source = Source.Picked(uri) // onResume shows it
    }

    private fun nextBundled() {
        val library = library ?: return
        val run = choice?.run ?: return
        inBackground({ library.golden(run).images.map { "${run.entry.folder}/${it.file}" } }) { outcome ->
            when (outcome) {
                is Outcome.Done -> {
                    val paths = outcome.value
                    val next = (paths.indexOf((source as? Source.Bundled)?.path) + 1) % paths.size
                    use(Source.Bundled(paths[next]))
                }
                is Outcome.Failed -> onFailure(outcome.reason)
            }
        }
    }

    private fun say(text: String?) {
        message.text = text
        message.visibility = if (text == null) View.GONE else View.VISIBLE
    }

    private fun showThreshold() {
        findViewById<TextView>(R.id.threshold_label).text = getString(R.string.threshold, threshold.progress)
    }

    override fun onSurfaceTextureAvailable(surface: SurfaceTexture, width: Int, height: Int) {
        if (library != null && source == Source.Camera) startCamera()
    }

    override fun onSurfaceTextureSizeChanged(surface: SurfaceTexture, width: Int, height: Int) {
        camera?.let { texture.showUndistorted(it.size, cameraRotation) }
    }

    override fun onSurfaceTextureDestroyed(surface: SurfaceTexture): Boolean {
        stopCamera()
        return true
    }

    override fun onSurfaceTextureUpdated(surface: SurfaceTexture) = Unit

    @Suppress("DEPRECATION") // its successor came with Android 11
    private fun displayRotation(): Int = windowManager.defaultDisplay.rotation

    /** A phone that is turned upside down makes no new activity, but the camera's frames are upside down then. */
    private val turns = object : DisplayManager.DisplayListener {
        override fun onDisplayChanged(displayId: Int) {
            if (camera == null || displayRotation() == cameraRotation) return
            stopCamera()
            startCamera()
        }

        override fun onDisplayAdded(displayId: Int) = Unit

        override fun onDisplayRemoved(displayId: Int) = Unit
    }

    private inner class ThresholdListener : SeekBar.OnSeekBarChangeListener {
        override fun onProgressChanged(bar: SeekBar, progress: Int, fromUser: Boolean) {
            showThreshold()
            val result = shown ?: return
            choice?.let { show(it, result) }
        }

        override fun onStartTrackingTouch(bar: SeekBar) = Unit

        override fun onStopTrackingTouch(bar: SeekBar) = Unit
    }

    private companion object {
        const val SOURCE = "source"
        const val ASKING = "asking"
        const val PERMISSION = 1
        const val PICK = 2
        const val SHOWN = 5
        const val THREADS = 2
        const val FIRST_THRESHOLD = 5
    }
}
