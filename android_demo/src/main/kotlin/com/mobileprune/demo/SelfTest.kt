package com.mobileprune.demo

import com.mobileprune.demo.core.Preprocessor
import com.mobileprune.demo.core.firstDifference
import com.mobileprune.demo.engine.Classifier
import com.mobileprune.demo.engine.Engine
import com.mobileprune.demo.engine.EngineSettings

/** What came of a run's self-test; [difference] is the first one, null where there is none. */
class SelfTestResult(val files: Int, val pictures: Int, val runtime: String, val difference: String?)

/** Does every file of a run answer here what it answered where it was shipped, from the encoded picture on? */
fun selfTest(library: Library, run: Run): SelfTestResult {
    val golden = library.golden(run)
    val contract = run.manifest.contract
    val preprocessor = Preprocessor(contract)
    for (variant in run.manifest.variants) {
        val choice = Choice(run, variant)
        val engine = Engine(library.map(choice.path), EngineSettings(threads = 1))
        Classifier(engine, contract, variant.file).use { classifier ->
            for (image in golden.images) {
                val bytes = library.bytes("${run.entry.folder}/${image.file}")
                val pixels = Pictures.open(bytes, contract).use { preprocessor.pixels(it.upright) }
                val difference = image.firstDifference(pixels, contract, variant.file, classifier.scores(pixels))
                if (difference != null) {
                    val said = "${variant.file}, $difference"
                    return SelfTestResult(run.manifest.variants.size, golden.images.size, golden.runtime, said)
                }
            }
        }
    }
    return SelfTestResult(run.manifest.variants.size, golden.images.size, golden.runtime, null)
}
