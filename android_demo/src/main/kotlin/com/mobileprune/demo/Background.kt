package com.mobileprune.demo

import android.os.Handler
import android.os.HandlerThread
import android.os.Looper
import com.mobileprune.demo.core.BadAsset
import java.io.IOException

/** What came of work in the background. */
sealed class Outcome<out T> {
    class Done<T>(val value: T) : Outcome<T>()

    /** Something that a bad file, a full memory or an odd device explains; [reason] is for people. */
    class Failed(val reason: String) : Outcome<Nothing>()
}

/**
 * The one thread on which models are loaded and run and pictures decoded: never the main thread, and never two at once,
 * so that nothing is measured while something else runs. It lives as long as the process.
 */
object Background {
    private val main = Handler(Looper.getMainLooper())

    val handler: Handler by lazy { Handler(HandlerThread("inference").apply { start() }.looper) }

    /** Does [work] in the background, then [done] on the main thread. */
    fun <T> run(work: () -> T, done: (Outcome<T>) -> Unit) {
        handler.post {
            val outcome = attempt(work)
            main.post { done(outcome) }
        }
    }

    /** [work] on the main thread. */
    fun onMain(work: () -> Unit) {
        main.post(work)
    }

    /** Does [work] here and now. Only failures that are no defect of the app are caught. */
    fun <T> attempt(work: () -> T): Outcome<T> =
        try {
            Outcome.Done(work())
        } catch (error: BadAsset) {
            failed(error)
        } catch (error: IOException) {
            failed(error)
        } catch (error: IllegalArgumentException) { // the runtime's word for a file that it does not take
            failed(error)
        } catch (error: IllegalStateException) { // the runtime's word for a file that it cannot run
            failed(error)
        } catch (error: SecurityException) { // a picture or file that another app has taken back
            failed(error)
        } catch (error: OutOfMemoryError) {
            failed(error)
        }

    private fun failed(error: Throwable) = Outcome.Failed(error.message ?: error.javaClass.simpleName)
}
