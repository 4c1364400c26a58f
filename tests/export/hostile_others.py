"""Small files of OpenVINO, Core ML and ExecuTorch that want more than to be read; each is given to its target."""

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
IR = """<?xml version="1.0"?>
<net name="sound" version="11"><layers>
<layer id="0" name="tokens" type="Parameter" version="opset1"><data shape="1,4" element_type="i64"/>
<output><port id="0" precision="I64" names="tokens"><dim>1</dim><dim>4</dim></port></output></layer>
<layer id="1" name="to" type="Convert" version="opset1"><data destination_type="f32"/>
<input><port id="0" precision="I64"><dim>1</dim><dim>4</dim></port></input>
<output><port id="1" precision="FP32"><dim>1</dim><dim>4</dim></port></output></layer>
<layer id="2" name="weights" type="Const" version="opset1"><data element_type="f32" shape="1, 4" offset="0" size="16"/>
<output><port id="0" precision="FP32"><dim>1</dim><dim>4</dim></port></output></layer>
<layer id="3" name="add" type="Add" version="opset1"><data auto_broadcast="numpy"/>
<input><port id="0" precision="FP32"><dim>1</dim><dim>4</dim></port><port id="1" precision="FP32"><dim>1</dim><dim>4</dim></port></input>
<output><port id="2" precision="FP32" names="text_embedding"><dim>1</dim><dim>4</dim></port></output></layer>
<layer id="4" name="result" type="Result" version="opset1" output_names="text_embedding">
<input><port id="0" precision="FP32"><dim>1</dim><dim>4</dim></port></input></layer></layers>
<edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/><edge from-layer="1" from-port="1" to-layer="3" to-port="0"/>
<edge from-layer="2" from-port="0" to-layer="3" to-port="1"/><edge from-layer="3" from-port="2" to-layer="4" to-port="0"/></edges>
<rt_info/></net>
"""  # noqa: E501  as OpenVINO writes it, but for line breaks
_ENTITIES = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa">{}]>'.format(
    "".join(f'<!ENTITY {chr(98 + index)} "{f"&{chr(97 + index)};" * 10}">' for index in range(9))
)


def openvino(old="", new="", *, weights=16, whole=None):
    """Give OpenVINO's target a graph in which one text is another."""

    def attempt(folder):
        assert old in IR
        (folder / "text.xml").write_text(IR.replace(old, new) if whole is None else whole)
        if weights is not None:
            (folder / "text.bin").write_bytes(bytes(weights))
        target = targets["openvino"]
        target.inspect(folder / "text.xml", TOWER)
        run = target.open(folder / "text.xml", TOWER)
        import torch

        assert run(torch.arange(4)[None])[0].tolist() == [[0, 1, 2, 3]]

    return attempt


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
    "a sound OpenVINO model": openvino(),
    "an OpenVINO model with an entity": openvino(
        whole=IR.replace("?>", '?><!DOCTYPE net [<!ENTITY x SYSTEM "/etc/passwd">]>', 1)
    ),
    "an OpenVINO model with a thousand million laughs": openvino("?>", f"?>{_ENTITIES}"),
    "an OpenVINO model with an instruction": openvino("?>", "?><?run it?>"),
    "an OpenVINO layer of an extension": openvino('type="Add" version="opset1"', 'type="Run" version="stranger"'),
    "an OpenVINO layer in an unknown set": openvino('type="Add" version="opset1"', 'type="Add" version="extension"'),
    "an OpenVINO loop": openvino('type="Add" version="opset1"', 'type="Loop" version="opset5"'),
    "an OpenVINO branch": openvino('type="Add" version="opset1"', 'type="If" version="opset8"'),
    "an OpenVINO model in a model": openvino("<rt_info/>", "<body><layers/></body>"),
    "OpenVINO weights beyond their file": openvino('offset="0"', 'offset="999999"'),
    "OpenVINO weights at 2^64": openvino('offset="0"', 'offset="18446744073709551600"'),
    "OpenVINO weights before their file": openvino('offset="0"', 'offset="-16"'),
    "OpenVINO weights of 2^50 bytes": openvino('size="16"', f'size="{2**50}"'),
    "OpenVINO weights of another shape": openvino('shape="1, 4" offset', 'shape="1048576, 1048576" offset'),
    "OpenVINO weights that are texts": openvino('element_type="f32"', 'element_type="string"'),
    "OpenVINO weights of a path": openvino('offset="0"', 'offset="0" path="/etc/passwd"'),
    "OpenVINO weights that are not there": openvino(weights=None),
    "OpenVINO weights that are cut": openvino(weights=8),
    "an OpenVINO input of 2^60": openvino('shape="1,4" element_type="i64"', f'shape="{2**60},4" element_type="i64"'),
    "an OpenVINO edge to nowhere": openvino('to-layer="4"', 'to-layer="99"'),
    "an OpenVINO edge in a circle": openvino('from-layer="0" from-port="0"', 'from-layer="3" from-port="2"'),
    "an OpenVINO layer twice": openvino('layer id="2"', 'layer id="1"'),
    "half an OpenVINO model": openvino(whole=IR[:700]),
    "an OpenVINO model of a million elements in each other": openvino(whole="<net>" * 10**6),
    "an OpenVINO model that is a picture": openvino(whole="\x89PNG"),
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
