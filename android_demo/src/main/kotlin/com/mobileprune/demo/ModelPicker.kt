package com.mobileprune.demo

import android.view.View
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Spinner

/** The list of files to choose from that two screens have. */
object ModelPicker {
    /** For the chosen file's path in a saved state. */
    const val KEY = "choice"

    /** Fills [spinner] with [choices], chooses the one with the path [kept], and calls [onChosen] for each choice. */
    fun fill(spinner: Spinner, choices: List<Choice>, kept: String?, onChosen: (Choice) -> Unit) {
        val names = choices.map(Choice::name)
        spinner.adapter = ArrayAdapter(spinner.context, android.R.layout.simple_spinner_item, names).apply {
            setDropDownViewResource(android.R.layout.simple_spinner_dropdown_item)
        }
        spinner.setSelection(maxOf(0, choices.indexOfFirst { it.path == kept }))
        spinner.onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>, view: View?, position: Int, id: Long) =
                onChosen(choices[position])

            override fun onNothingSelected(parent: AdapterView<*>) = Unit
        }
    }
}
