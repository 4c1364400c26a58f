// Core ML, iOS 17 or macOS 14. Export: mobileclip export MODEL --target coreml --precision float16 --set preprocess=uint8 -o FOLDER
// Xcode compiles both packages when they are added to an app, `xcrun coremlcompiler compile image.mlpackage .` by hand,
// `MLModel.compileModel(at:)` on the device. FOLDER holds the compiled models beside the other files of the export.
// Not compiled here: call `checkGolden()` first. docs/devices.md says what each step does.
import CoreML
import CoreVideo
import Foundation
import Tokenizers  // https://github.com/DePasqualeOrg/swift-tokenizers

struct Contract: Decodable {
    struct Tower: Decodable { let tower, inputName, outputName: String }
    struct Input: Decodable { let size: Int; let interpolation: String }
    struct Image: Decodable { let input: Input; let preprocess: String }
    struct TextInput: Decodable { let contextLength, padId: Int }
    struct Text: Decodable { let input: TextInput; let endId: Int }
    let formatVersion: Int
    let target, precision: String
    let logitScale: Double
    let towers: [Tower]
    let image: Image
    let text: Text
}

enum HostError: Error { case otherExport(String), noBuffer, wrongEmbeddings(String, Float) }

struct MobileCLIP {
    let contract: Contract
    let folder: URL
    let models: [String: MLModel]
    let tokenizer: any Tokenizer

    init(folder: URL) async throws {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        contract = try decoder.decode(Contract.self, from: Data(contentsOf: folder.appending(path: "mobileclip.json")))
        guard contract.formatVersion == 1, contract.target == "coreml", contract.image.preprocess == "uint8",
            contract.image.input.interpolation == "bilinear"
        else { throw HostError.otherExport("expected --target coreml --set preprocess=uint8 of a model that wants bilinear") }
        models = try Dictionary(uniqueKeysWithValues: contract.towers.map { tower in
            (tower.tower, try MLModel(contentsOf: folder.appending(path: "\(tower.tower).mlmodelc")))
        })
        tokenizer = try await AutoTokenizer.from(directory: folder)
        self.folder = folder
    }

    /// A row of ids: cut in front of the end token, padded to the context's length.
    func tokens(_ text: String) throws -> MLMultiArray {
        let length = contract.text.input.contextLength
        var ids = try tokenizer.encode(text: text)
        if ids.count > length { ids = Array(ids.prefix(length - 1)) + [contract.text.endId] }
        ids += Array(repeating: contract.text.input.padId, count: length - ids.count)
        return try multiArray(ids.map(Int32.init), shape: [1, length])
    }

    func encode(text: String) throws -> [Float] { try run("text", MLFeatureValue(multiArray: tokens(text))) }

    /// `rgb`: rows of red, green and blue bytes, upright.
    func encode(rgb: [UInt8], width: Int, height: Int) throws -> [Float] {
        let size = contract.image.input.size
        let (short, long) = (min(width, height), max(width, height))
        let longer = size * long / short
        let (newWidth, newHeight) = width <= height ? (size, longer) : (longer, size)
        var pixels = resampled(rgb, count: width, to: newWidth, lines: height, step: 3, line: 3 * width)
        pixels = resampled(pixels, count: height, to: newHeight, lines: newWidth, step: 3 * newWidth, line: 3)
        let left = Int((Double(newWidth - size) / 2).rounded(.toNearestOrEven))
        let top = Int((Double(newHeight - size) / 2).rounded(.toNearestOrEven))
        return try encode(cropped: { x, y, colour in pixels[3 * ((top + y) * newWidth + left + x) + colour] })
    }

    /// Encode what is at (x, y) in a colour (0 is red) of a picture of the model's size.
    func encode(cropped: (Int, Int, Int) -> UInt8) throws -> [Float] {
        let size = contract.image.input.size
        var made: CVPixelBuffer?
        CVPixelBufferCreate(nil, size, size, kCVPixelFormatType_32BGRA, nil, &made)
        guard let buffer = made else { throw HostError.noBuffer }
        CVPixelBufferLockBaseAddress(buffer, [])
        let bytes = CVPixelBufferGetBaseAddress(buffer)!.assumingMemoryBound(to: UInt8.self)
        let stride = CVPixelBufferGetBytesPerRow(buffer)
        for y in 0..<size {
            for x in 0..<size {
                for colour in 0..<3 { bytes[y * stride + 4 * x + 2 - colour] = cropped(x, y, colour) }
                bytes[y * stride + 4 * x + 3] = 255
            }
        }
        CVPixelBufferUnlockBaseAddress(buffer, [])
        return try run("image", MLFeatureValue(pixelBuffer: buffer))
    }

    /// The embedding, of unit length.
    private func run(_ name: String, _ value: MLFeatureValue) throws -> [Float] {
        let tower = contract.towers.first { $0.tower == name }!
        let input = try MLDictionaryFeatureProvider(dictionary: [tower.inputName: value])
        let output = try models[name]!.prediction(from: input).featureValue(for: tower.outputName)!.multiArrayValue!
        let embedding = (0..<output.count).map { output[$0].floatValue }
        return unit(embedding)
    }

    /// Compare the files with the model that they were made of.
    func checkGolden() throws {
        let least: Float = ["float32": 0.99999, "float16": 0.9995, "int8": 0.98][contract.precision]!
        let golden = try safetensors(folder.appending(path: "golden.safetensors"))
        let (size, length) = (contract.image.input.size, contract.text.input.contextLength)
        let pixels = [UInt8](golden["pixels"]!), ids = numbers(golden["tokens"]!, as: Int32.self)
        for (name, count) in [("image", pixels.count / (3 * size * size)), ("text", ids.count / length)] {
            let expected = numbers(golden["\(name)_embedding"]!, as: Float.self)
            let dim = expected.count / count
            for row in 0..<count {
                let computed: [Float]
                if name == "image" {
                    computed = try encode(cropped: { x, y, colour in pixels[((3 * row + colour) * size + y) * size + x] })
                } else {
                    let one = try multiArray(Array(ids[row * length..<(row + 1) * length]), shape: [1, length])
                    computed = try run("text", MLFeatureValue(multiArray: one))
                }
                let cosine = dot(computed, unit(Array(expected[row * dim..<(row + 1) * dim])))
                // Written so that NaN fails too.
                if !(cosine > least) { throw HostError.wrongEmbeddings(name, cosine) }
            }
        }
    }

    /// How likely each text is to fit the picture, among these texts.
    func probabilities(image: [Float], texts: [[Float]]) -> [Double] {
        let logits = texts.map { contract.logitScale * Double(dot(image, $0)) }
        let exponentials = logits.map { exp($0 - logits.max()!) }
        return exponentials.map { $0 / exponentials.reduce(0, +) }
    }
}

/// One direction of Pillow's antialiased bilinear resize, for three interleaved colours.
func resampled(_ source: [UInt8], count: Int, to newCount: Int, lines: Int, step: Int, line: Int) -> [UInt8] {
    let scale = Double(count) / Double(newCount), support = max(scale, 1)
    let horizontal = step == 3
    let newLine = horizontal ? 3 * newCount : 3, newStep = horizontal ? 3 : 3 * lines
    var result = [UInt8](repeating: 0, count: 3 * newCount * lines)
    for index in 0..<newCount {
        let center = (Double(index) + 0.5) * scale
        let first = max(0, Int(center - support + 0.5)), last = min(count, Int(center + support + 0.5))
        var weights = (first..<last).map { max(0, 1 - abs((Double($0) - center + 0.5) / support)) }
        let sum = weights.reduce(0, +)
        weights = weights.map { $0 / sum }
        for other in 0..<lines {
            for colour in 0..<3 {
                var value = 0.5
                for (offset, weight) in weights.enumerated() {
                    value += weight * Double(source[other * line + (first + offset) * step + colour])
                }
                result[other * newLine + index * newStep + colour] = UInt8(min(255, max(0, value)))
            }
        }
    }
    return result
}

func dot(_ one: [Float], _ other: [Float]) -> Float {
    var sum: Float = 0
    for (left, right) in zip(one, other) { sum += left * right }
    return sum
}

func unit(_ values: [Float]) -> [Float] {
    let length = dot(values, values).squareRoot()
    return values.map { $0 / length }
}

func multiArray(_ values: [Int32], shape: [Int]) throws -> MLMultiArray {
    let array = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: .int32)
    for (index, value) in values.enumerated() { array[index] = NSNumber(value: value) }
    return array
}

/// Each tensor's bytes: eight bytes with the length of a JSON table, the table, the bytes.
func safetensors(_ url: URL) throws -> [String: Data] {
    struct Entry: Decodable { let data_offsets: [Int] }
    let file = try Data(contentsOf: url)
    let length = Int(numbers(file.prefix(8), as: UInt64.self)[0])
    let table = try JSONDecoder().decode([String: Entry].self, from: file.subdata(in: 8..<8 + length))
    return table.mapValues { file.subdata(in: 8 + length + $0.data_offsets[0]..<8 + length + $0.data_offsets[1]) }
}

func numbers<Number>(_ data: Data, as type: Number.Type) -> [Number] {
    [UInt8](data).withUnsafeBytes { bytes in
        (0..<bytes.count / MemoryLayout<Number>.size).map {
            bytes.loadUnaligned(fromByteOffset: $0 * MemoryLayout<Number>.size, as: type)
        }
    }
}
