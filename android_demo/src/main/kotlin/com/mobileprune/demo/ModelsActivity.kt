package com.mobileprune.demo

import android.os.Bundle
import android.text.format.Formatter
import android.view.View
import android.view.ViewGroup
import android.widget.Button
import android.widget.TextView
import com.mobileprune.demo.core.Variant

/** Every file that was shipped, what the manifest says of it, and whether it answers here as it should. */
class ModelsActivity : Screen() {
    private val list: ViewGroup get() = findViewById(R.id.runs)

    // Results by run, so that turning the phone does not lose them.
    private val results = HashMap<String, String>()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_models)
        savedInstanceState?.getBundle(RESULTS)?.let { kept ->
            for (run in kept.keySet()) results[run] = kept.getString(run).orEmpty()
        }
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        outState.putBundle(RESULTS, Bundle().apply { for ((run, said) in results) putString(run, said) })
    }

    override fun onLibrary(library: Library) {
        for (run in library.runs) {
            val item = layoutInflater.inflate(R.layout.item_run, list, false)
            item.findViewById<TextView>(R.id.run_title).text = run.entry.title
            item.findViewById<TextView>(R.id.run_provenance).text = run.entry.provenance
            val variants = item.findViewById<ViewGroup>(R.id.run_variants)
            run.manifest.variants.forEach { variants.addView(describe(run, it, variants)) }
            val result = item.findViewById<TextView>(R.id.self_test_result)
            result.text = results[run.entry.folder].orEmpty()
            item.findViewById<Button>(R.id.self_test).setOnClickListener { test(library, run, it, result) }
            list.addView(item)
        }
    }

    override fun onFailure(reason: String) {
        list.addView(TextView(this).apply { text = getString(R.string.failed, reason) })
    }

    private fun describe(run: Run, variant: Variant, parent: ViewGroup): View {
        val item = layoutInflater.inflate(R.layout.item_variant, parent, false)
        item.findViewById<TextView>(R.id.variant_title).text =
            getString(R.string.variant_line, variant.model, variant.recipe)
        val accuracy = variant.accuracy
        val agreement = variant.agreement
        val quality = when {
            accuracy != null -> getString(R.string.accuracy, 100 * accuracy)
            agreement != null -> getString(R.string.agreement, 100 * agreement)
            else -> getString(R.string.not_measured)
        }
        val facts = getString(
            R.string.variant_facts,
            Formatter.formatShortFileSize(this, variant.bytes),
            quality,
            "%.2f".format(variant.macs / 1e6),
            100 * variant.sparsity,
            variant.input.dtype,
            variant.output.dtype,
            variant.minimumRuntime,
        )
        val goals = run.manifest.recommended.filterValues { it == variant.file }.keys.map { it.replace('_', ' ') }
        item.findViewById<TextView>(R.id.variant_facts).text =
            if (goals.isEmpty()) facts else "$facts\n${getString(R.string.recommended, goals.joinToString())}"
        return item
    }

    private fun test(library: Library, run: Run, button: View, shown: TextView) {
        button.isEnabled = false
        shown.text = getString(R.string.self_testing)
        inBackground({ selfTest(library, run) }) { outcome ->
            button.isEnabled = true
            val said = when (outcome) {
                is Outcome.Failed -> getString(R.string.self_test_failed, outcome.reason)
                is Outcome.Done -> describe(outcome.value)
            }
            results[run.entry.folder] = said
            shown.text = said
        }
    }

    private fun describe(found: SelfTestResult): String =
        if (found.difference == null) {
            getString(R.string.self_test_passed, found.files, found.pictures, found.runtime)
        } else {
            getString(R.string.self_test_failed, found.difference)
        }

    private companion object {
        const val RESULTS = "results"
    }
}
