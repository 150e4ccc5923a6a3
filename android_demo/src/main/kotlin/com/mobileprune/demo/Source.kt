package com.mobileprune.demo

import android.net.Uri

/** What is classified; as text it survives the process. */
sealed class Source {
    object Camera : Source() {
        override fun toString() = "camera"
    }

    class Picked(val uri: Uri) : Source() {
        override fun toString() = "picked:$uri"
    }

    class Bundled(val path: String) : Source() {
        override fun toString() = "bundled:$path"
    }

    companion object {
        fun parse(text: String?): Source {
            val rest = text?.substringAfter(':').orEmpty()
            return when (text?.substringBefore(':')) {
                "picked" -> Picked(Uri.parse(rest))
                "bundled" -> Bundled(rest)
                else -> Camera
            }
        }
    }
}
