package com.mobileprune.demo.engine

import com.mobileprune.demo.core.isSettled

/** What a benchmark took: single invocations in microseconds, the first one apart. */
class Timings(val firstMillis: Double, val warmUpRuns: Int, val runsMicros: DoubleArray)

/** The user does not want the result any more. */
class Cancelled : Exception()

/**
 * Times [invoke], which runs a file once and returns nanoseconds: the first run, then runs until they take the same
 * time or [warmUpNanos] are over, then [rounds] that count. [onRun] gets each of these, in microseconds, as it comes.
 *
 * @param clock in nanoseconds.
 * @throws Cancelled soon after [isCancelled] says so.
 */
fun measure(
    rounds: Int,
    invoke: () -> Long,
    isCancelled: () -> Boolean = { false },
    onRun: (Double) -> Unit = {},
    warmUpNanos: Long = 1_000_000_000,
    clock: () -> Long = System::nanoTime,
): Timings {
    require(rounds > 0) { "rounds is $rounds; at least 1 is needed" }
    val first = invoke() / 1e6
    val begin = clock()
    val warm = ArrayList<Double>()
    while (clock() - begin < warmUpNanos && !isSettled(warm)) {
        if (isCancelled()) throw Cancelled()
        warm += invoke().toDouble()
    }
    val runs = DoubleArray(rounds) {
        if (isCancelled()) throw Cancelled()
        (invoke() / 1e3).also(onRun)
    }
    return Timings(first, warm.size, runs)
}
