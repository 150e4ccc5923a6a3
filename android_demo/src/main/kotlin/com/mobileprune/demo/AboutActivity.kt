package com.mobileprune.demo

import android.os.Bundle
import android.widget.TextView

/** What this is, what it runs on, where its models come from and under which licences. */
class AboutActivity : Screen() {
    private val text: TextView get() = findViewById(R.id.about)

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_about)
        text.text = getString(R.string.about)
    }

    override fun onLibrary(library: Library) {
        val licenses = { library.runs.associateWith(library::license) }
        inBackground({ Device.runtime to licenses() }) { outcome ->
            when (outcome) {
                is Outcome.Done -> text.text = describe(library, outcome.value.first, outcome.value.second)
                is Outcome.Failed -> onFailure(outcome.reason)
            }
        }
    }

    override fun onFailure(reason: String) {
        text.text = getString(R.string.failed, reason)
    }

    private fun describe(library: Library, runtime: String, licenses: Map<Run, String?>): String {
        val device = Device.facts
        val parts = mutableListOf(
            getString(R.string.about),
            getString(R.string.about_runtime, runtime, library.runtime),
            getString(R.string.about_device, device.model, device.soc, device.abi, device.android),
        )
        for ((run, license) in licenses) parts += listOfNotNull(run.entry.title, run.entry.provenance, license)
        return parts.joinToString("\n\n")
    }
}
