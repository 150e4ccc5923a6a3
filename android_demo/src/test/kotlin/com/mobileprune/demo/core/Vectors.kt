package com.mobileprune.demo.core

import java.util.Base64
import org.json.JSONArray
import org.json.JSONObject

/** What mobileprune's Python computed; `tests/android_vectors.py` writes it. */
object Vectors {
    private val all: JSONObject by lazy {
        val stream = checkNotNull(javaClass.getResourceAsStream("/vectors.json")) { "there is no vectors.json" }
        JSONObject(stream.use { it.readBytes() }.toString(Charsets.UTF_8))
    }

    fun cases(name: String): List<JSONObject> = all.getJSONArray(name).objects().also { check(it.isNotEmpty()) }

    fun one(name: String): JSONObject = all.getJSONObject(name)
}

fun JSONObject.bytes(name: String): ByteArray = Base64.getDecoder().decode(getString(name))

fun JSONObject.floats(name: String): FloatArray = getJSONArray(name).floats()

fun JSONArray.doubles(): DoubleArray = DoubleArray(length()) { getDouble(it) }

/** A port as a manifest has it. */
fun JSONObject.port(name: String): Port = getJSONObject(name).run {
    val scale = doubleOrNull("scale")
    val zeroPoint = if (scale == null) 0 else getInt("zero_point")
    Port(getString("dtype"), getJSONArray("shape").ints(), scale?.toFloat() ?: 1f, zeroPoint)
}
