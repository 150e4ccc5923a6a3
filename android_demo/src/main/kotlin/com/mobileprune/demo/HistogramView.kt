package com.mobileprune.demo

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.util.AttributeSet
import android.view.View
import com.mobileprune.demo.core.histogram
import com.mobileprune.demo.core.percentile

/** How single runs are spread. TalkBack reads number, range and median. */
class HistogramView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    private val bar = Paint().apply { color = themeColor(android.R.attr.colorAccent) }
    private var counts = IntArray(BINS)

    init {
        contentDescription = resources.getString(R.string.histogram_empty)
    }

    /** Shows durations in milliseconds. */
    fun show(millis: DoubleArray) {
        val sorted = millis.sortedArray()
        counts = histogram(sorted, BINS)
        contentDescription = if (sorted.isEmpty()) {
            resources.getString(R.string.histogram_empty)
        } else {
            val median = percentile(sorted, 50.0)
            resources.getString(R.string.histogram, sorted.size, sorted.first(), sorted.last(), median)
        }
        invalidate()
    }

    override fun onDraw(canvas: Canvas) {
        val most = maxOf(1, counts.max())
        val step = width.toFloat() / BINS
        for (i in counts.indices) {
            val top = height * (1 - counts[i].toFloat() / most)
            canvas.drawRect(i * step, top, (i + 0.85f) * step, height.toFloat(), bar)
        }
    }

    private companion object {
        const val BINS = 40
    }
}
