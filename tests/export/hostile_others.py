"""Small files of Core ML and ExecuTorch that want more than to be read; each is given to its target."""

import json
from pathlib import Path

import attrs
import numpy as np

from mobileclip.export import TowerFile
from mobileclip.export.targets import targets

TOWER = TowerFile(
    tower="text",
    file="text",
    input_name="tokens",
    input_dtype="int64",
    input_shape=(1, 4),
    output_name="text_embedding",
    output_shape=(1, 4),
    compute="float32",
)


@attrs.define
class Package:
    """What a Core ML package is made of, before it is written."""

    folder: Path
    manifest: dict
    model: object
    block: object


def core_ml(change):
    """Give Core ML's target a package that is changed."""

    def attempt(folder):
        from coremltools.proto import Model_pb2

        package = folder / "text.mlpackage"
        data = package / "Data" / "com.apple.CoreML"
        data.mkdir(parents=True)
        manifest = {
            "fileFormatVersion": "1.0.0",
            "itemInfoEntries": {"m": {"author": "a", "name": "n", "path": "com.apple.CoreML/model.mlmodel"}},
            "rootModelIdentifier": "m",
        }
        model = Model_pb2.Model(specificationVersion=8)
        model.mlProgram.version = 1
        block = model.mlProgram.functions["main"].block_specializations["CoreML7"]
        change(Package(folder=package, manifest=manifest, model=model, block=block))
        (package / "Manifest.json").write_text(json.dumps(manifest))
        (data / "model.mlmodel").write_bytes(model.SerializeToString())
        targets["coreml"].inspect(package, TOWER)

    return attempt


def _read_elsewhere(package):
    value = package.block.operations.add(type="const").attributes["val"]
    value.blobFileValue.fileName = "@model_path/../../../../etc/passwd"


def _custom_layer(package):
    package.model.neuralNetwork.layers.add(name="mine").custom.className = "Stranger"


def mil_program(build, *, shape=(1, 4), **changed):
    """Give Core ML's target a program, with another number for one that stands in its file."""

    def attempt(folder):
        from mobileclip.export.targets.coreml.mil import quiet

        with quiet():
            import coremltools
            from coremltools.converters.mil import Builder

            specs = [Builder.TensorSpec(shape=shape)]
            made = Builder.program(input_specs=specs, opset_version=coremltools.target.iOS17)(
                lambda a: build(Builder, a)
            )
            model = coremltools.convert(
                made, convert_to="mlprogram", pass_pipeline=coremltools.PassPipeline.EMPTY, skip_model_load=True,
                compute_precision=coremltools.precision.FLOAT32, minimum_deployment_target=coremltools.target.iOS17,
            )  # fmt: skip
            model.save(str(folder / "text.mlpackage"))
        path = folder / "text.mlpackage" / "Data" / "com.apple.CoreML" / "model.mlmodel"
        specification = type(model.get_spec()).FromString(path.read_bytes())
        (block,) = specification.mlProgram.functions["main"].block_specializations.values()
        for operation in block.operations:
            if operation.outputs[0].name in changed:
                operation.attributes["val"].immediateValue.tensor.ints.values[:] = changed[operation.outputs[0].name]
        if changed == DOUBLED:
            for number, operation in enumerate(one for one in block.operations if one.type == "tile"):
                operation.outputs[0].type.tensorType.dimensions[1].constant.size <<= number + 1
        path.write_bytes(specification.SerializeToString())
        target = targets["coreml"]
        target.inspect(folder / "text.mlpackage", TOWER)
        import torch

        target.open(folder / "text.mlpackage", TOWER)(torch.zeros(shape))

    return attempt


DOUBLED = {f"times{number}": [1, 2] for number in range(40)}


def _doubled(builder, value):
    """Return a value that is repeated as often as 40 numbers say."""
    for name in DOUBLED:
        value = builder.tile(x=value, reps=builder.const(val=np.array([1, 1], np.int32), name=name))
    return value


def executorch(data):
    """Give ExecuTorch's target a file; without trust, `verify` does not come so far."""

    def attempt(folder):
        (folder / "text.pte").write_bytes(data)
        targets["executorch"].inspect(folder / "text.pte", TOWER)

    return attempt


def _header(program, segments, length):
    sizes = b"".join(value.to_bytes(8, "little") for value in (program, segments, length))
    return b"\0" * 4 + b"ET12" + b"eh00" + (32).to_bytes(4, "little") + sizes + b"\0" * 64


OTHERS = {
    "a Core ML package with a file above it": core_ml(
        lambda package: package.manifest["itemInfoEntries"]["m"].update(path="../../../etc/passwd")
    ),
    "a Core ML package with another file": core_ml(lambda package: (package.folder / "run.dylib").write_bytes(b"x")),
    "a Core ML package with a link": core_ml(
        lambda package: (package.folder / "Data" / "com.apple.CoreML" / "weights").symlink_to("/etc")
    ),
    "a Core ML package without a root": core_ml(lambda package: package.manifest.pop("rootModelIdentifier")),
    "a Core ML model of custom layers": core_ml(_custom_layer),
    "a Core ML program that reads elsewhere": core_ml(_read_elsewhere),
    "a Core ML program of an unknown operation": core_ml(
        lambda package: package.block.operations.add(type="custom_stranger")
    ),
    "a Core ML program with a loop": core_ml(lambda package: package.block.operations.add(type="add").blocks.add()),
    "a Core ML program of two functions": core_ml(
        lambda package: package.model.mlProgram.functions["other"].inputs.add()
    ),
    "a Core ML program of nothing": core_ml(lambda _: None),
    "a Core ML program that repeats its input 2^40 times": mil_program(
        lambda builder, a: builder.tile(x=a, reps=builder.const(val=np.array([2, 2], np.int32), name="times")),
        times=[2**20, 2**20],
    ),
    "a Core ML program that repeats a constant 2^40 times": mil_program(
        lambda builder, a: builder.add(
            x=a,
            y=builder.reduce_mean(
                x=builder.tile(
                    x=builder.const(val=np.ones((1, 1), np.float32), name="one"),
                    reps=builder.const(val=np.array([1, 4], np.int32), name="times"),
                ),
                axes=[0, 1],
            ),
        ),
        times=[2**20, 2**20],
    ),
    "a Core ML program that doubles its input 40 times": mil_program(_doubled, **DOUBLED),
    "a Core ML program that doubles a constant 40 times": mil_program(
        lambda builder, a: builder.add(
            x=a, y=_doubled(builder, builder.const(val=np.ones((1, 1), np.float32), name="one"))
        ),
        **DOUBLED,
    ),
    "an ExecuTorch file of nothing": executorch(b""),
    "an ExecuTorch file that is none": executorch(np.arange(4096, dtype=np.uint16).tobytes()),
    "an ExecuTorch file that says 2^60 bytes": executorch(_header(2**60, 0, 0)),
    "an ExecuTorch file of segments beyond it": executorch(_header(64, 2**40, 2**40)),
    "an ExecuTorch file of zeros": executorch(_header(64, 0, 0)),
}
