package com.mobileprune.demo.core

import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/** A file among the assets that is not what it should be; the message says which and why. */
class BadAsset(message: String, cause: Throwable? = null) : Exception(message, cause)

/** One end of a file; integers mean `real = scale * (stored - zeroPoint)`. */
class Port(val dtype: String, val shape: IntArray, val scale: Float, val zeroPoint: Int) {
    val isFloat: Boolean get() = dtype == "float32"
}

/** One `.tflite` of a run, and what was measured on its very bytes. */
class Variant(
    val file: String,
    val model: String,
    val recipe: String,
    val bytes: Long,
    val sha256: String,
    val macs: Long,
    val sparsity: Double,
    val input: Port,
    val output: Port,
    /** On the test images; null where there were no labels. */
    val accuracy: Double?,
    /** Share of test images with the class of the unpruned model; null where there were labels. */
    val agreement: Double?,
    val minimumRuntime: String,
)

/** What the app needs of a run's `manifest.json`; the schema is mobileprune's. */
class Manifest(
    val dataset: String,
    val labels: List<String>,
    val contract: Contract,
    /** Whether outputs are logits, which want a softmax, or probabilities already. */
    val logits: Boolean,
    val variants: List<Variant>,
    /** File names by goal: smallest, fastest, most_accurate. */
    val recommended: Map<String, String>,
) {
    fun variant(file: String): Variant? = variants.firstOrNull { it.file == file }

    companion object {
        const val SCHEMA = 1

        /** Reads the text of a `manifest.json`; [where] is what errors call it. */
        fun parse(text: String, where: String): Manifest = reading(where) {
            val json = JSONObject(text)
            require(json.getInt("schema") == SCHEMA) { "schema ${json.get("schema")} is not $SCHEMA" }
            val labels = json.getJSONArray("labels").strings()
            val variants = json.getJSONArray("variants").objects().map(::readVariant)
            require(variants.isNotEmpty()) { "it lists no variants" }
            for (variant in variants) {
                val outputs = variant.output.shape.fold(1) { product, size -> product * size }
                require(outputs == labels.size) { "${variant.file} has $outputs outputs for ${labels.size} labels" }
            }
            Manifest(
                dataset = json.getJSONObject("dataset").getString("name"),
                labels = labels,
                contract = contract(json.getJSONObject("preprocess")),
                logits = json.getJSONObject("output").getString("kind") == "logits",
                variants = variants,
                recommended = json.getJSONObject("recommended").let { goals ->
                    goals.keys().asSequence().associateWith(goals::getString)
                },
            )
        }

        /** Reads a manifest's `preprocess`. */
        fun contract(json: JSONObject): Contract {
            val color = when (val name = json.getString("color")) {
                "RGB" -> ColorMode.RGB
                "grayscale" -> ColorMode.GRAYSCALE
                else -> throw IllegalArgumentException("color is $name")
            }
            val fit = when (val name = json.getString("fit")) {
                "crop" -> Fit.CROP
                "stretch" -> Fit.STRETCH
                else -> throw IllegalArgumentException("fit is $name")
            }
            require(json.getString("resize") == "bilinear") { "resize is ${json.get("resize")}" }
            return Contract(
                height = json.getInt("height"),
                width = json.getInt("width"),
                color = color,
                antialias = json.getBoolean("antialias"),
                fit = fit,
                mean = json.getJSONArray("mean").perChannel(color.channels),
                std = json.getJSONArray("std").perChannel(color.channels),
                exif = json.getBoolean("exif"),
            )
        }

        private fun readVariant(json: JSONObject) = Variant(
            file = fileName(json.getString("file")),
            model = json.getString("model"),
            recipe = json.getString("recipe"),
            bytes = json.getLong("bytes"),
            sha256 = json.getString("sha256"),
            macs = json.getLong("macs"),
            sparsity = json.getDouble("sparsity"),
            input = readPort(json.getJSONObject("input")),
            output = readPort(json.getJSONObject("output")),
            accuracy = json.doubleOrNull("accuracy"),
            agreement = json.doubleOrNull("agreement"),
            minimumRuntime = json.getString("minimum_runtime"),
        )

        private fun readPort(json: JSONObject): Port {
            val dtype = json.getString("dtype")
            require(dtype in setOf("float32", "int8", "uint8")) { "a port is $dtype" }
            val scale = json.doubleOrNull("scale")
            require((scale == null) == (dtype == "float32")) { "a $dtype port has scale $scale" }
            val shape = json.getJSONArray("shape").ints()
            require(shape.isNotEmpty() && shape.all { it > 0 }) { "a port has shape ${shape.toList()}" }
            return Port(dtype, shape, scale?.toFloat() ?: 1f, if (scale == null) 0 else json.getInt("zero_point"))
        }

        /** One value for all channels, or one for each. */
        private fun JSONArray.perChannel(channels: Int): FloatArray {
            require(length() == 1 || length() == channels) { "${length()} values for $channels channels" }
            return FloatArray(channels) { getDouble(if (length() == 1) 0 else it).toFloat() }
        }
    }
}

/** Runs [read]; whatever is wrong with the JSON becomes a [BadAsset] that names the file. */
internal fun <T> reading(where: String, read: () -> T): T =
    try {
        read()
    } catch (error: JSONException) {
        throw BadAsset("$where: ${error.message}", error)
    } catch (error: IllegalArgumentException) {
        throw BadAsset("$where: ${error.message}", error)
    }

/** [name], if it names a file in the folder at hand and nothing outside it. */
internal fun fileName(name: String): String {
    require(name.isNotEmpty() && name.all { it.isLetterOrDigit() || it in "._-" } && !name.startsWith(".")) {
        "'$name' is no file name"
    }
    return name
}

internal fun JSONArray.objects(): List<JSONObject> = List(length()) { getJSONObject(it) }

internal fun JSONArray.strings(): List<String> = List(length()) { getString(it) }

internal fun JSONArray.ints(): IntArray = IntArray(length()) { getInt(it) }

internal fun JSONArray.floats(): FloatArray = FloatArray(length()) { getDouble(it).toFloat() }

internal fun JSONObject.doubleOrNull(name: String): Double? = if (isNull(name)) null else getDouble(name)
