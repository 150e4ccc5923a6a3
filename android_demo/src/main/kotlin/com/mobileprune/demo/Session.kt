package com.mobileprune.demo

import com.mobileprune.demo.core.Manifest
import com.mobileprune.demo.core.Preprocessor
import com.mobileprune.demo.core.Score
import com.mobileprune.demo.core.Upright
import com.mobileprune.demo.core.softmax
import com.mobileprune.demo.core.topK
import com.mobileprune.demo.engine.Classifier
import com.mobileprune.demo.engine.Engine
import com.mobileprune.demo.engine.EngineSettings
import java.io.Closeable

/** What a picture was taken for, and how long each step took, in milliseconds. */
class Classified(val best: List<Score>, val preparing: Double, val running: Double, val reading: Double)

/** A loaded file with all of its buffers, from pixels to classes. In the background only. */
class Session(library: Library, val choice: Choice, threads: Int) : Closeable {
    private val manifest: Manifest = choice.run.manifest
    private val preprocessor = Preprocessor(manifest.contract)
    private val classifier =
        Classifier(Engine(library.map(choice.path), EngineSettings(threads)), manifest.contract, choice.variant.file)

    fun classify(picture: Upright, count: Int): Classified {
        val start = System.nanoTime()
        classifier.write(preprocessor.pixels(picture))
        val ready = System.nanoTime()
        classifier.run()
        val ran = System.nanoTime()
        val scores = classifier.read()
        if (manifest.logits) softmax(scores)
        val best = topK(scores, count)
        val end = System.nanoTime()
        return Classified(best, (ready - start) / 1e6, (ran - ready) / 1e6, (end - ran) / 1e6)
    }

    override fun close() = classifier.close()
}
