package com.mobileprune.demo.core

import org.json.JSONObject

/** One run among the assets: its folder and what a person should know of it. */
class RunEntry(val folder: String, val title: String, val provenance: String)

/** `index.json`: the runs that were shipped. */
class RunIndex(val runtime: String, val runs: List<RunEntry>) {
    companion object {
        const val FILE = "index.json"

        fun parse(text: String): RunIndex = reading(FILE) {
            val json = JSONObject(text)
            require(json.getInt("schema") == Manifest.SCHEMA) { "schema ${json.get("schema")} is not known" }
            RunIndex(
                runtime = json.getString("runtime"),
                runs = json.getJSONArray("runs").objects().map {
                    RunEntry(fileName(it.getString("folder")), it.getString("title"), it.getString("provenance"))
                },
            )
        }
    }
}
