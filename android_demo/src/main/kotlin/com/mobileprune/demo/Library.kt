package com.mobileprune.demo

import android.content.res.AssetManager
import com.mobileprune.demo.core.Golden
import com.mobileprune.demo.core.Manifest
import com.mobileprune.demo.core.RunEntry
import com.mobileprune.demo.core.RunIndex
import com.mobileprune.demo.core.Variant
import java.io.FileInputStream
import java.io.FileNotFoundException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel

/** A run among the assets. */
class Run(val entry: RunEntry, val manifest: Manifest)

/** One file of a run. */
class Choice(val run: Run, val variant: Variant) {
    val name: String get() = "${run.entry.title}: ${variant.model} ${variant.recipe}"

    /** Where it is among the assets. */
    val path: String get() = "${run.entry.folder}/${variant.file}"
}

/** What was shipped with the app. Reading it takes a moment: in the background, once. */
class Library(private val assets: AssetManager) {
    private val index = RunIndex.parse(text(RunIndex.FILE))

    /** The runtime that the files were verified on. */
    val runtime: String get() = index.runtime

    val runs: List<Run> = index.runs.map { Run(it, Manifest.parse(text("${it.folder}/$MANIFEST"), it.folder)) }

    val choices: List<Choice> = runs.flatMap { run -> run.manifest.variants.map { Choice(run, it) } }

    fun golden(run: Run): Golden = Golden.parse(text("${run.entry.folder}/${Golden.FILE}"), run.entry.folder)

    /** The licence of a run's model and data; null where there is none of its own. */
    fun license(run: Run): String? =
        try {
            text("${run.entry.folder}/LICENSE.txt")
        } catch (_: FileNotFoundException) {
            null
        }

    fun bytes(path: String): ByteArray = assets.open(path).use { it.readBytes() }

    /** A file as it lies in the APK, mapped and not copied: it is stored there without compression. */
    fun map(path: String): ByteBuffer = mapAsset(assets, path)

    private fun text(path: String): String = bytes(path).toString(Charsets.UTF_8)

    companion object {
        private const val MANIFEST = "manifest.json"

        fun mapAsset(assets: AssetManager, path: String): ByteBuffer =
            assets.openFd(path).use { file ->
                FileInputStream(file.fileDescriptor).channel.use {
                    it.map(FileChannel.MapMode.READ_ONLY, file.startOffset, file.declaredLength)
                }
            }
    }
}
