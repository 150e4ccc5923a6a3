package com.mobileprune.demo.core

import org.json.JSONObject

/** A bundled picture, and what Python made of it when it was shipped. */
class GoldenImage(
    val file: String,
    /** Means of the uint8 input over an 8 × 8 grid, rows of columns of channels: do both sides see the same? */
    val grid: FloatArray,
    /** Grey levels by which a mean may differ; 0 for a format that has only one way to be decoded. */
    val gridTolerance: Float,
    /** For each variant's file its outputs in real numbers, before any softmax. */
    val outputs: Map<String, FloatArray>,
    /** For each variant's file how far an output may be off: twice what noise of one grey level does to it. */
    val tolerances: Map<String, Float>,
)

/** `golden.json` of a run. */
class Golden(val runtime: String, val images: List<GoldenImage>) {
    companion object {
        const val FILE = "golden.json"
        const val GRID = 8

        fun parse(text: String, where: String): Golden = reading(where) {
            val json = JSONObject(text)
            require(json.getInt("schema") == Manifest.SCHEMA) { "schema ${json.get("schema")} is not known" }
            Golden(json.getString("runtime"), json.getJSONArray("images").objects().map(::image))
        }

        private fun image(json: JSONObject): GoldenImage {
            val outputs = json.getJSONObject("outputs")
            val tolerances = json.getJSONObject("tolerances")
            return GoldenImage(
                file = fileName(json.getString("file")),
                grid = json.getJSONArray("grid").floats(),
                gridTolerance = json.getDouble("grid_tolerance").toFloat(),
                outputs = outputs.keys().asSequence().associateWith { outputs.getJSONArray(it).floats() },
                tolerances = tolerances.keys().asSequence().associateWith { tolerances.getDouble(it).toFloat() },
            )
        }
    }
}

/** The first difference between what was expected and what came out, as a sentence; null if there is none. */
fun GoldenImage.firstDifference(pixels: ByteArray, contract: Contract, variant: String, actual: FloatArray): String? =
    differenceSeen(pixels, contract) ?: differenceAnswered(variant, actual)

/** The same for the input alone: does this decoder see what Python's saw? */
fun GoldenImage.differenceSeen(pixels: ByteArray, contract: Contract): String? {
    val means = gridMeans(pixels, contract)
    val i = grid.indices.firstOrNull { Math.abs(means[it] - grid[it]) > gridTolerance + ROUNDING } ?: return null
    val place = i / contract.color.channels
    return "$file: in part ${place / Golden.GRID}, ${place % Golden.GRID} of the input the mean is ${means[i]}, not " +
        "${grid[i]}: the picture was decoded or resized in another way"
}

private fun GoldenImage.differenceAnswered(variant: String, actual: FloatArray): String? {
    val expected = outputs[variant] ?: return "$file: there is no expected output of $variant"
    val tolerance = tolerances[variant] ?: return "$file: there is no tolerance for $variant"
    if (expected.size != actual.size) return "$file: ${actual.size} outputs, not ${expected.size}"
    // Written so that NaN differs.
    val i = expected.indices.firstOrNull { !(Math.abs(actual[it] - expected[it]) <= tolerance) }
    if (i != null) return "$file: output $i is ${actual[i]}, not ${expected[i]} ± $tolerance"
    val top = topK(actual, 1).first().index
    val wanted = topK(expected, 1).first().index
    return if (top == wanted) null else "$file: the first class is $top, not $wanted"
}

private const val ROUNDING = 0.01f

/** Means of uint8 pixels over an 8 × 8 grid; part k of n samples reaches from `k·n/8` to `max(that + 1, (k+1)·n/8)`. */
fun gridMeans(pixels: ByteArray, contract: Contract): FloatArray {
    val channels = contract.color.channels
    val means = FloatArray(Golden.GRID * Golden.GRID * channels)
    for (i in means.indices) {
        val place = i / channels
        var sum = 0L
        var count = 0
        for (y in part(place / Golden.GRID, contract.height)) {
            for (x in part(place % Golden.GRID, contract.width)) {
                sum += pixels[(y * contract.width + x) * channels + i % channels].toInt() and 0xFF
                count++
            }
        }
        means[i] = (sum.toDouble() / count).toFloat()
    }
    return means
}

private fun part(k: Int, length: Int): IntRange {
    val start = k * length / Golden.GRID
    return start until maxOf(start + 1, (k + 1) * length / Golden.GRID)
}
