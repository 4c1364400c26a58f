"""Writes the model card and the licence of an export."""

from __future__ import annotations

from pathlib import Path

from mobileclip.encoders.checkpoints import ModelSpec
from mobileclip.export.contract import NOT_RUN, Contract, TowerFile
from mobileclip.export.describing import Origin
from mobileclip.export.verification.parity import Report
from mobileclip.interop.card import front_matter

CARD, LICENCE = "README.md", "LICENSE"

_BESIDE = (
    "`mobileclip.json` has the whole contract: how pictures and texts are prepared, and the scale of the softmax. "
    "`golden.safetensors` has inputs and the embeddings that a host must get of them."
)
_TERMS = "The licence of the weights goes with these files; its text is where the weights came from."


def write_card(folder: Path, contract: Contract, report: Report, *, spec: ModelSpec, origin: Origin, use: str) -> None:
    """Write the card of an export, and its licence.

    Args:
        folder: of the export.
        contract: of it, but for its files.
        report: what was measured.
        spec: of the model.
        origin: of the weights.
        use: how the files are used where they are run; empty where nobody has said.
    """
    rows = [_row(file, one.precision) for one in contract.each for file in one.towers]
    name = contract.name or "A model"
    parts = [
        front_matter(
            spec,
            licence=origin.hub_licence,
            base_model=origin.base_model,
            library="mobileclip",
            tags=("export", contract.target),
        ),
        f"# {name} for {contract.target}",
        f"An export by mobileclip. Weights: {origin.author}. Licence: {contract.licence}.",
    ]
    parts += [use] if use else []
    parts.append("| file | precision | takes | gives |\n| --- | --- | --- | --- |\n" + "\n".join(rows))
    given = [f"`{file.file}`" for one in contract.each for file in one.towers if file.ranges == "model"]
    if given:
        parts.append(
            f"{' and '.join(given)}: int8 with the ranges that the model carries, found when it was quantised."
        )
    parts.append(_BESIDE)
    parts.append(f"## Measured\n\n{_measured(contract, report)}")
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    licence = f"{name}\n\nWeights: {origin.author}\nLicence: {contract.licence}\n\n{_TERMS}\n"
    (folder / LICENCE).write_text(licence, encoding="utf-8")


def _row(file: TowerFile, precision: str) -> str:
    takes = f"`{file.input_name}`: {file.input_dtype} {_shape(file.input_shape)}"
    if file.lengths:
        takes += f", and rows of {', '.join(map(str, file.lengths[:-1]))} that hold the text"
    gives = ", ".join(f"`{name}`: float32 {_shape(shape)}" for name, shape in file.outputs.items())
    return f"| `{file.file}` | {precision} | {takes} | {gives} |"


def _shape(sides: tuple[int | None, ...]) -> str:
    return " x ".join("any" if side is None else str(side) for side in sides)


def _measured(contract: Contract, report: Report) -> str:
    if contract.state != "run":
        return f"{NOT_RUN[0].upper()}{NOT_RUN[1:]}: no runtime of it was where it was exported."
    lines = [
        f"- {tower.tower}{'' if tower.precision is None else f' in {tower.precision}'}: least cosine with float32 "
        f"{tower.cosine_minimum}, over {tower.count} inputs"
        for tower in report.towers
        if tower.stage is None
    ]
    verdict = "All acceptance checks passed." if report.passed else f"Failed: {'; '.join(report.failures)}."
    verdict += "" if report.is_ranked else " Rankings could not be checked: the model's embeddings hardly differ."
    return "\n".join(lines) + f"\n\nRun by {report.runtime}, on {report.data}. {verdict}"
