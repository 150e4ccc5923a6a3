package com.mobileprune.demo

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.Menu
import android.view.MenuItem

/** What the screens have in common: the way to the others, the library, and work in the background. */
abstract class Screen : Activity() {
    /** Called with the library once it has been read, unless the screen has gone by then. */
    protected abstract fun onLibrary(library: Library)

    /** Called in its place where the assets cannot be read. */
    protected abstract fun onFailure(reason: String)

    override fun onPostCreate(savedInstanceState: Bundle?) {
        super.onPostCreate(savedInstanceState)
        val assets = applicationContext.assets
        inBackground({ read ?: Library(assets).also { read = it } }) {
            when (it) {
                is Outcome.Done -> onLibrary(it.value)
                is Outcome.Failed -> onFailure(it.reason)
            }
        }
    }

    /** As [Background.run]; nobody is told if the screen has gone by then. */
    protected fun <T> inBackground(work: () -> T, done: (Outcome<T>) -> Unit) =
        Background.run(work) { if (!isDestroyed) done(it) }

    override fun onCreateOptionsMenu(menu: Menu): Boolean {
        menuInflater.inflate(R.menu.screens, menu)
        menu.findItem(MENU.getValue(javaClass)).isVisible = false
        return true
    }

    override fun onOptionsItemSelected(item: MenuItem): Boolean {
        val screen = MENU.entries.firstOrNull { it.value == item.itemId }?.key
            ?: return super.onOptionsItemSelected(item)
        startActivity(Intent(this, screen).addFlags(Intent.FLAG_ACTIVITY_REORDER_TO_FRONT))
        return true
    }

    private companion object {
        /** Only the background thread touches it. */
        var read: Library? = null

        val MENU = mapOf<Class<*>, Int>(
            ClassifyActivity::class.java to R.id.menu_classify,
            ModelsActivity::class.java to R.id.menu_models,
            BenchmarkActivity::class.java to R.id.menu_benchmark,
            AboutActivity::class.java to R.id.menu_about,
        )
    }
}
