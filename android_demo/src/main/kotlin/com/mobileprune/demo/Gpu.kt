package com.mobileprune.demo

import org.tensorflow.lite.Delegate

/**
 * The GPU delegate, if the app was built with one. `make apk` builds without: what TensorFlow published of it to the
 * repository of `make apk` lacks a class. The Gradle build has it.
 */
object Gpu {
    private const val CLASS = "org.tensorflow.lite.gpu.GpuDelegate"

    /** Why there is no GPU; null where one can be tried. */
    val missing: String? by lazy {
        try {
            Class.forName(CLASS)
            null
        } catch (_: ClassNotFoundException) {
            "this app was built without its delegate"
        }
    }

    /**
     * A new delegate; close it after the interpreter.
     *
     * @throws IllegalStateException there is none, or this device cannot have one.
     */
    fun delegate(): Delegate =
        try {
            Class.forName(CLASS).getDeclaredConstructor().newInstance() as Delegate
        } catch (error: ReflectiveOperationException) {
            throw IllegalStateException("No GPU delegate: ${error.cause ?: error}", error)
        } catch (error: LinkageError) {
            throw IllegalStateException("No GPU delegate: $error", error)
        }
}
