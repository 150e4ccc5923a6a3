package com.mobileprune.demo

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.text.TextPaint
import android.text.TextUtils
import android.util.AttributeSet
import android.util.TypedValue
import android.view.View

/** The best classes, each with a bar as long as its probability. TalkBack reads the same as text. */
class ScoresView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    private val text = TextPaint(Paint.ANTI_ALIAS_FLAG).apply {
        color = themeColor(android.R.attr.textColorPrimary)
        // In scaled pixels, so that it grows with the system's font size.
        textSize = TypedValue.applyDimension(TypedValue.COMPLEX_UNIT_SP, 16f, resources.displayMetrics)
    }
    private val bar = Paint().apply {
        color = themeColor(android.R.attr.colorAccent)
        alpha = 90
    }
    private val lineHeight = 1.8f * text.textSize
    private val margin = 0.4f * text.textSize
    private var names: List<String> = emptyList()
    private var shares: FloatArray = FloatArray(0)

    /** Shows [names] with their [shares], 0 to 1. */
    fun show(names: List<String>, shares: FloatArray) {
        val sameHeight = names.size == this.names.size
        this.names = names
        this.shares = shares
        contentDescription =
            names.indices.joinToString { resources.getString(R.string.score, names[it], 100 * shares[it]) }
        if (!sameHeight) requestLayout()
        invalidate()
    }

    override fun onMeasure(widthMeasureSpec: Int, heightMeasureSpec: Int) {
        val wide = getDefaultSize(suggestedMinimumWidth, widthMeasureSpec)
        setMeasuredDimension(wide, resolveSize((lineHeight * names.size).toInt(), heightMeasureSpec))
    }

    override fun onDraw(canvas: Canvas) {
        for (i in names.indices) {
            val top = i * lineHeight
            canvas.drawRect(0f, top, width * shares[i], top + 0.9f * lineHeight, bar)
            val percent = "%.1f%%".format(100 * shares[i])
            val room = width - text.measureText(percent) - 3 * margin
            val name = TextUtils.ellipsize(names[i], text, maxOf(0f, room), TextUtils.TruncateAt.END)
            val baseline = top + 1.2f * text.textSize
            canvas.drawText(name, 0, name.length, margin, baseline, text)
            canvas.drawText(percent, width - text.measureText(percent) - margin, baseline, text)
        }
    }
}

/** A colour of the theme, which differs by day and by night. */
internal fun View.themeColor(attribute: Int): Int {
    val value = TypedValue()
    context.theme.resolveAttribute(attribute, value, true)
    return if (value.resourceId != 0) context.getColor(value.resourceId) else value.data
}
