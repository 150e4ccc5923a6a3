package com.mobileprune.demo.engine

import com.mobileprune.demo.core.BadAsset
import com.mobileprune.demo.core.Contract
import com.mobileprune.demo.core.InputWriter
import com.mobileprune.demo.core.Port
import com.mobileprune.demo.core.dequantize
import java.io.Closeable
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Delegate
import org.tensorflow.lite.Interpreter
import org.tensorflow.lite.Tensor

/** How a file is run. */
class EngineSettings(val threads: Int, val xnnpack: Boolean = true, val gpu: Delegate? = null) {
    /** What computes, in the words of mobileprune's records. */
    val accelerator: String get() = if (gpu != null) "GPU" else if (xnnpack) "XNNPACK" else "none"
}

/**
 * A loaded file with its buffers, all allocated here and once. What it takes and answers is read from the file itself.
 * One thread at a time may use it, the one that made it where a GPU is involved.
 *
 * @param model the file's bytes, mapped or in a direct buffer; it must not change.
 */
class Engine(model: ByteBuffer, settings: EngineSettings) : Closeable {
    private val interpreter: Interpreter
    val initMillis: Double
    val inputPort: Port
    val outputPort: Port
    val input: ByteBuffer
    val output: ByteBuffer

    init {
        val options = Interpreter.Options().setNumThreads(settings.threads).setUseXNNPACK(settings.xnnpack)
        settings.gpu?.let { options.addDelegate(it) }
        val start = System.nanoTime()
        interpreter = Interpreter(model, options)
        interpreter.allocateTensors()
        initMillis = (System.nanoTime() - start) / 1e6
        try {
            require(interpreter.inputTensorCount == 1 && interpreter.outputTensorCount == 1) {
                "it has ${interpreter.inputTensorCount} inputs and ${interpreter.outputTensorCount} outputs, not one"
            }
            inputPort = portOf(interpreter.getInputTensor(0))
            outputPort = portOf(interpreter.getOutputTensor(0))
            input = bufferFor(interpreter.getInputTensor(0))
            output = bufferFor(interpreter.getOutputTensor(0))
        } catch (error: IllegalArgumentException) {
            interpreter.close()
            throw error
        }
    }

    /** Runs the file on what is in [input]; returns how long the runtime took, in nanoseconds. */
    fun invoke(): Long {
        input.rewind()
        output.rewind()
        interpreter.run(input, output)
        return interpreter.lastNativeInferenceDurationNanoseconds
    }

    override fun close() = interpreter.close()

    private companion object {
        fun bufferFor(tensor: Tensor): ByteBuffer =
            ByteBuffer.allocateDirect(tensor.numBytes()).order(ByteOrder.nativeOrder())

        fun portOf(tensor: Tensor): Port {
            val dtype = when (tensor.dataType()) {
                DataType.FLOAT32 -> "float32"
                DataType.INT8 -> "int8"
                DataType.UINT8 -> "uint8"
                else -> throw IllegalArgumentException("a port is ${tensor.dataType()}, not float32, int8 or uint8")
            }
            val quantization = tensor.quantizationParams()
            return if (dtype == "float32") {
                Port(dtype, tensor.shape(), 1f, 0)
            } else {
                Port(dtype, tensor.shape(), quantization.scale, quantization.zeroPoint)
            }
        }
    }
}

/** An [engine] behind a preprocessing contract: pixels in, scores out. It closes the engine. */
class Classifier(private val engine: Engine, contract: Contract, name: String) : Closeable {
    private val writer: InputWriter
    private val scores: FloatArray

    init {
        val wanted = intArrayOf(1, contract.height, contract.width, contract.color.channels)
        if (!engine.inputPort.shape.contentEquals(wanted)) {
            engine.close()
            throw BadAsset("$name takes ${engine.inputPort.shape.toList()}, the manifest says ${wanted.toList()}")
        }
        writer = InputWriter(contract, engine.inputPort)
        scores = FloatArray(engine.outputPort.shape.fold(1) { product, size -> product * size })
    }

    /** Fills the input; apart from [run], so that each can be timed. */
    fun write(pixels: ByteArray) = writer.write(pixels, engine.input)

    /** Runs the file; returns how long the runtime took, in nanoseconds. */
    fun run(): Long = engine.invoke()

    /** The outputs in real numbers, before any softmax; valid until the next call. */
    fun read(): FloatArray {
        dequantize(engine.output, engine.outputPort, scores)
        return scores
    }

    /** All three. */
    fun scores(pixels: ByteArray): FloatArray {
        write(pixels)
        run()
        return read()
    }

    override fun close() = engine.close()
}
