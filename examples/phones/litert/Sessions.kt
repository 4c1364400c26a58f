// LiteRT on Android: these replace the sessions of ../onnx_runtime/MobileClip.kt, whose `target` becomes `litert`.
// Export: mobileclip export MODEL --target litert --set converter=PYTHON --set preprocess=float32 -o FOLDER
// `Accelerator.GPU` asks for the GPU. Try it for the image tower alone.
// build.gradle.kts: implementation("com.google.ai.edge.litert:litert:2.3.0") or later
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer

private val models = towers.mapValues {
    CompiledModel.create(File(folder, it.value.getString("file")).path, CompiledModel.Options(Accelerator.CPU))
}

private fun encode(pixels: ByteArray): FloatArray =
    run("image") { it.writeFloat(FloatArray(pixels.size) { at -> (pixels[at].toInt() and 255).toFloat() }) }

private fun encode(ids: LongArray): FloatArray = run("text") { it.writeInt(IntArray(ids.size) { at -> ids[at].toInt() }) }

private fun run(name: String, fill: (TensorBuffer) -> Unit): FloatArray {
    val model = models.getValue(name)
    val inputs = model.createInputBuffers()
    val outputs = model.createOutputBuffers()
    fill(inputs[0])
    model.run(inputs, outputs)
    return unit(outputs[0].readFloat())
}
