package com.mobileprune.demo.engine

import com.mobileprune.demo.core.ArrayRaster
import com.mobileprune.demo.core.BadAsset
import com.mobileprune.demo.core.ColorMode
import com.mobileprune.demo.core.Contract
import com.mobileprune.demo.core.Exif
import com.mobileprune.demo.core.Fit
import com.mobileprune.demo.core.Golden
import com.mobileprune.demo.core.Manifest
import com.mobileprune.demo.core.Port
import com.mobileprune.demo.core.Preprocessor
import com.mobileprune.demo.core.RunIndex
import com.mobileprune.demo.core.Upright
import com.mobileprune.demo.core.Variant
import com.mobileprune.demo.core.differenceSeen
import com.mobileprune.demo.core.firstDifference
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import javax.imageio.ImageIO
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.tensorflow.lite.TensorFlowLite

/**
 * The shipped files on a real runtime of this computer, TensorFlow Lite 2.6.2 behind the same Java interface.
 *
 * Float files only: where a dense layer's int8 weights have one scale a channel, 2.6 loads the file and answers zeros.
 */
class InferenceTest {
    private val assets = File(System.getProperty("assets"))
    private val index = RunIndex.parse(File(assets, RunIndex.FILE).readText())
    private val runs = index.runs.map { Shipped(File(assets, it.folder)) }

    /** A run, and those of its files that this runtime can run. */
    private class Shipped(private val folder: File) {
        val name: String = folder.name
        val manifest = Manifest.parse(file("manifest.json").readText(), name)
        val golden = Golden.parse(file(Golden.FILE).readText(), name)
        val variants = manifest.variants.filter {
            it.input.isFloat && number(it.minimumRuntime) <= number(TensorFlowLite.runtimeVersion())
        }

        fun file(name: String) = File(folder, name)

        fun engine(variant: Variant): Engine {
            val content = RandomAccessFile(file(variant.file), "r").use {
                it.channel.map(FileChannel.MapMode.READ_ONLY, 0, it.length())
            }
            // The kernels of the runtime itself: another implementation than the one that made the golden files.
            return Engine(content, EngineSettings(threads = 1, xnnpack = false))
        }

        fun classifier(variant: Variant) = Classifier(engine(variant), manifest.contract, variant.file)

        private fun number(version: String): Int {
            val (major, minor) = version.split(".").map(String::toInt)
            return 1000 * major + minor
        }
    }

    private fun open(file: File): Upright {
        val image = ImageIO.read(file)
        // Asked for colours, Java takes grey for linear light.
        val grey = image.raster.numBands == 1
        val pixels = IntArray(image.width * image.height) {
            val x = it % image.width
            val y = it / image.width
            if (grey) 0xFF000000.toInt() or image.raster.getSample(x, y, 0) * 0x10101 else image.getRGB(x, y)
        }
        return Upright(ArrayRaster(image.width, image.height, pixels), Exif.orientation(file.readBytes()))
    }

    @Test
    fun `every golden picture gets the answers that Python gave, from the encoded file on`() {
        var compared = 0
        for (run in runs) {
            val preprocessor = Preprocessor(run.manifest.contract)
            for (variant in run.variants) {
                run.classifier(variant).use { classifier ->
                    for (image in run.golden.images) {
                        val pixels = preprocessor.pixels(open(run.file(image.file)))
                        val scores = classifier.scores(pixels)
                        val difference = image.firstDifference(pixels, run.manifest.contract, variant.file, scores)
                        assertNull("${run.name}/${variant.file}: $difference", difference)
                        compared++
                    }
                }
            }
        }
        assertTrue("nothing was compared", compared > 0)
        println("$compared answers compared on TensorFlow Lite ${TensorFlowLite.runtimeVersion()}")
    }

    @Test
    fun `every golden picture is decoded, turned and resized as in Python`() {
        for (run in runs) {
            val preprocessor = Preprocessor(run.manifest.contract)
            for (image in run.golden.images) {
                val pixels = preprocessor.pixels(open(run.file(image.file)))
                assertNull(run.name, image.differenceSeen(pixels, run.manifest.contract))
            }
        }
    }

    @Test
    fun `another picture gets another answer`() {
        val run = runs.first { it.variants.isNotEmpty() }
        val variant = run.variants.first()
        val (first, second) = run.golden.images
        val preprocessor = Preprocessor(run.manifest.contract)
        run.classifier(variant).use { classifier ->
            val wrong = classifier.scores(preprocessor.pixels(open(run.file(second.file)))).copyOf()
            val pixels = preprocessor.pixels(open(run.file(first.file)))
            assertNotNull(first.firstDifference(pixels, run.manifest.contract, variant.file, wrong))
        }
    }

    @Test
    fun `what a file takes and answers is read from the file, and is what the manifest says`() {
        for (run in runs) {
            for (variant in run.variants) {
                run.engine(variant).use { engine ->
                    assertSame(variant.input, engine.inputPort)
                    assertSame(variant.output, engine.outputPort)
                }
            }
        }
    }

    private fun assertSame(said: Port, found: Port) {
        assertEquals(said.dtype, found.dtype)
        assertEquals(said.shape.toList(), found.shape.toList())
        assertEquals(said.scale, found.scale, 0f)
        assertEquals(said.zeroPoint, found.zeroPoint)
    }

    @Test
    fun `a file is measured`() {
        val run = runs.first { it.variants.isNotEmpty() }
        run.engine(run.variants.first()).use { engine ->
            fillWithNoise(engine)
            val timings = measure(5, engine::invoke, warmUpNanos = 10_000_000)
            assertEquals(5, timings.runsMicros.size)
            assertTrue(timings.runsMicros.all { it > 0 })
            assertTrue(engine.initMillis > 0)
        }
    }

    @Test
    fun `rubbish and a contract of another size are refused`() {
        val settings = EngineSettings(threads = 1, xnnpack = false)
        assertThrows(IllegalArgumentException::class.java) { Engine(ByteBuffer.allocateDirect(1000), settings) }
        val run = runs.first { it.variants.isNotEmpty() }
        val variant = run.variants.first()
        val other = Contract(7, 9, ColorMode.RGB, true, Fit.CROP, FloatArray(3), FloatArray(3) { 1f }, true)
        assertThrows(BadAsset::class.java) { Classifier(run.engine(variant), other, variant.file) }
    }

    private companion object {
        init {
            // On Android the interface does this by itself.
            System.loadLibrary("tensorflowlite_jni")
        }
    }
}
