// ONNX Runtime on Android. Export: mobileclip export MODEL --target onnx --precision int8 --set preprocess=uint8 -o FOLDER
// Not compiled here: call `checkGolden()` first. docs/devices.md says what each step does.
// build.gradle.kts: implementation("com.microsoft.onnxruntime:onnxruntime-android:1.20.0") or later,
//   implementation("ai.djl.huggingface:tokenizers:0.33.0"), implementation("ai.djl.android:tokenizer-native:0.33.0")
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import android.graphics.Bitmap
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.LongBuffer
import kotlin.math.abs
import kotlin.math.exp
import kotlin.math.max
import kotlin.math.min
import kotlin.math.sqrt
import org.json.JSONObject

class MobileClip(private val folder: File) {
    private val contract = JSONObject(File(folder, "mobileclip.json").readText())
    private val towers = contract.getJSONArray("towers").let { all ->
        (0 until all.length()).map(all::getJSONObject).associateBy { it.getString("tower") }
    }
    private val image = contract.getJSONObject("image")
    private val text = contract.getJSONObject("text")
    private val size = image.getJSONObject("input").getInt("size")
    private val length = text.getJSONObject("input").getInt("context_length")
    private val tokenizer = HuggingFaceTokenizer.newInstance(File(folder, text.getString("tokenizer")).toPath())
    private val environment = OrtEnvironment.getEnvironment()
    private val sessions = towers.mapValues { environment.createSession(File(folder, it.value.getString("file")).path) }

    init {
        require(contract.getInt("format_version") == 1 && contract.getString("target") == "onnx") { "not an export for ONNX" }
        require(image.getString("preprocess") == "uint8") { "export with --set preprocess=uint8" }
        require(image.getJSONObject("input").getString("interpolation") == "bilinear") { "this host resizes bilinearly" }
    }

    fun encode(text: String): FloatArray = encode(tokens(text))

    fun encode(bitmap: Bitmap): FloatArray = encode(pixels(bitmap))

    /** A row of ids: cut in front of the end token, padded to the context's length. */
    fun tokens(words: String): LongArray {
        val ids = tokenizer.encode(words).ids
        val padding = text.getJSONObject("input").getLong("pad_id")
        val row = LongArray(length) { ids.getOrElse(it) { padding } }
        if (ids.size > length) row[length - 1] = text.getLong("end_id")
        return row
    }

    /** Planes of red, green and blue: the shorter side resized, the centre cropped. The bitmap is ARGB_8888 and upright. */
    fun pixels(bitmap: Bitmap): ByteArray {
        val (width, height) = bitmap.width to bitmap.height
        val packed = IntArray(width * height).also { bitmap.getPixels(it, 0, width, 0, 0, width, height) }
        val longer = (size.toLong() * max(width, height) / min(width, height)).toInt()
        val (newWidth, newHeight) = if (width <= height) size to longer else longer to size
        val (left, top) = Math.rint((newWidth - size) / 2.0).toInt() to Math.rint((newHeight - size) / 2.0).toInt()
        val result = ByteArray(3 * size * size)
        for (colour in 0..2) {
            val plane = IntArray(packed.size) { (packed[it] shr (16 - 8 * colour)) and 255 }
            val wide = resampled(plane, width, newWidth, lines = height, step = 1, line = width)
            val both = resampled(wide, height, newHeight, lines = newWidth, step = newWidth, line = 1)
            for (y in 0 until size) for (x in 0 until size) {
                result[(colour * size + y) * size + x] = both[(top + y) * newWidth + left + x].toByte()
            }
        }
        return result
    }

    private fun encode(pixels: ByteArray): FloatArray = run("image") {
        val buffer = ByteBuffer.allocateDirect(pixels.size).order(ByteOrder.nativeOrder()).put(pixels)
        buffer.rewind()
        val shape = longArrayOf(1, 3, size.toLong(), size.toLong())
        OnnxTensor.createTensor(environment, buffer, shape, OnnxJavaType.UINT8)
    }

    private fun encode(ids: LongArray): FloatArray = run("text") {
        OnnxTensor.createTensor(environment, LongBuffer.wrap(ids), longArrayOf(1, length.toLong()))
    }

    /** The embedding, of unit length. */
    private fun run(name: String, input: () -> OnnxTensor): FloatArray = input().use { tensor ->
        val tower = towers.getValue(name)
        sessions.getValue(name).run(mapOf(tower.getString("input_name") to tensor)).use { result ->
            @Suppress("UNCHECKED_CAST")
            unit((result[0].value as Array<FloatArray>)[0])
        }
    }

    /** Compare the files with the model that they were made of. */
    fun checkGolden() {
        val least = mapOf("float32" to 0.99999, "float16" to 0.9995, "bfloat16" to 0.9995, "int8" to 0.98,
                              "int8-weights" to 0.99)
            .getValue(contract.getString("precision"))
        val golden = safetensors(File(folder, "golden.safetensors"))
        val pixels = golden.getValue("pixels").let { ByteArray(it.remaining()).also { array -> it.get(array) } }
        val ids = golden.getValue("tokens").asLongBuffer().let { LongArray(it.remaining()).also { array -> it.get(array) } }
        val imageCount = pixels.size / (3 * size * size)
        for ((name, count) in listOf("image" to imageCount, "text" to ids.size / length)) {
            val expected = golden.getValue("${name}_embedding").asFloatBuffer().let { FloatArray(it.remaining()).also { array -> it.get(array) } }
            val dim = expected.size / count
            for (row in 0 until count) {
                val computed = if (name == "image") encode(pixels.copyOfRange(row * 3 * size * size, (row + 1) * 3 * size * size))
                else encode(ids.copyOfRange(row * length, (row + 1) * length))
                val cosine = dot(computed, unit(expected.copyOfRange(row * dim, (row + 1) * dim)))
                check(cosine > least) { "the $name tower gives other embeddings than the model did: a cosine of $cosine" }
            }
        }
    }

    /** How likely each text is to fit the picture, among these texts. */
    fun probabilities(picture: FloatArray, texts: List<FloatArray>): List<Double> {
        val logits = texts.map { contract.getDouble("logit_scale") * dot(picture, it) }
        val exponentials = logits.map { exp(it - logits.max()) }
        return exponentials.map { it / exponentials.sum() }
    }
}

/** One direction of Pillow's antialiased bilinear resize, for one colour. */
fun resampled(source: IntArray, count: Int, newCount: Int, lines: Int, step: Int, line: Int): IntArray {
    val scale = count.toDouble() / newCount
    val support = max(scale, 1.0)
    val (newStep, newLine) = if (step == 1) 1 to newCount else lines to 1
    val result = IntArray(newCount * lines)
    for (index in 0 until newCount) {
        val center = (index + 0.5) * scale
        val first = max(0, (center - support + 0.5).toInt())
        val last = min(count, (center + support + 0.5).toInt())
        val weights = DoubleArray(last - first) { max(0.0, 1 - abs((first + it - center + 0.5) / support)) }
        val sum = weights.sum()
        for (other in 0 until lines) {
            var value = 0.0
            for (offset in weights.indices) value += weights[offset] * source[other * line + (first + offset) * step]
            result[other * newLine + index * newStep] = (value / sum + 0.5).toInt().coerceIn(0, 255)
        }
    }
    return result
}

fun unit(values: FloatArray): FloatArray = sqrt(values.sumOf { (it * it).toDouble() }).let { norm ->
    FloatArray(values.size) { (values[it] / norm).toFloat() }
}

fun dot(one: FloatArray, other: FloatArray): Double = one.indices.sumOf { (one[it] * other[it]).toDouble() }

/** Each tensor's bytes: eight bytes with the length of a JSON table, the table, the bytes. */
fun safetensors(file: File): Map<String, ByteBuffer> {
    val bytes = file.readBytes()
    val header = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).getLong(0).toInt()
    val table = JSONObject(String(bytes, 8, header))
    return table.keys().asSequence().associateWith { name ->
        val ends = table.getJSONObject(name).getJSONArray("data_offsets")
        ByteBuffer.wrap(bytes, 8 + header + ends.getInt(0), ends.getInt(1) - ends.getInt(0)).slice()
            .order(ByteOrder.LITTLE_ENDIAN)
    }
}
