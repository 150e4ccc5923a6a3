package com.mobileprune.demo.engine

import java.util.Random

/** Fills an engine's input with noise, the same each time: zeros, or the denormals of random bytes, take others. */
fun fillWithNoise(engine: Engine, seed: Long = 0) {
    val random = Random(seed)
    val input = engine.input
    input.clear()
    if (engine.inputPort.isFloat) {
        while (input.hasRemaining()) input.putFloat(random.nextGaussian().toFloat())
    } else {
        while (input.hasRemaining()) input.put(random.nextInt(256).toByte())
    }
    input.rewind()
}
