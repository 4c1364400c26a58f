// ExecuTorch on Android: these replace the sessions of ../onnx_runtime/MobileClip.kt, whose `target` becomes `executorch`.
// Export: mobileclip export MODEL --target executorch --precision int8 --set preprocess=uint8 -o FOLDER
// build.gradle.kts: implementation("org.pytorch:executorch-android:1.0.0") or later
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

private val modules = towers.mapValues { Module.load(File(folder, it.value.getString("file")).path) }

private fun encode(pixels: ByteArray): FloatArray =
    run("image", Tensor.fromBlobUnsigned(pixels, longArrayOf(1, 3, size.toLong(), size.toLong())))

private fun encode(ids: LongArray): FloatArray = run("text", Tensor.fromBlob(ids, longArrayOf(1, length.toLong())))

private fun run(name: String, input: Tensor): FloatArray =
    unit(modules.getValue(name).forward(EValue.from(input))[0].toTensor().dataAsFloatArray)
