"""Small files of ExecuTorch that want more than to be read; each is given to its target, as if it were trusted."""

import numpy as np

from mobileclip.export import TowerFile, targets

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
    "an ExecuTorch file of nothing": executorch(b""),
    "an ExecuTorch file that is none": executorch(np.arange(4096, dtype=np.uint16).tobytes()),
    "an ExecuTorch file that says 2^60 bytes": executorch(_header(2**60, 0, 0)),
    "an ExecuTorch file of segments beyond it": executorch(_header(64, 2**40, 2**40)),
    "an ExecuTorch file of zeros": executorch(_header(64, 0, 0)),
}
