plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

// `make apk` writes to build/ in another layout.
layout.buildDirectory = file("build/gradle")

android {
    namespace = "com.mobileprune.demo"
    compileSdk = 35

    defaultConfig {
        applicationId = "com.mobileprune.demo"
        minSdk = 24
        targetSdk = 34
        versionCode = 1
        versionName = "0.1.0"
        ndk { abiFilters += setOf("arm64-v8a", "x86_64") }
    }

    sourceSets["main"].kotlin.srcDir("src/main/kotlin")
    sourceSets["test"].kotlin.srcDir("src/test/kotlin")

    // Mapped into memory as they lie in the APK.
    androidResources { noCompress += "tflite" }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
    kotlinOptions { jvmTarget = "1.8" }
}

dependencies {
    implementation(libs.litert)
    implementation(libs.litert.gpu)
    testImplementation(libs.junit)
    testImplementation(libs.json)
}
