"""A tower written with as few layers in float32 as its gates let it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import attrs

from mobileclip.export.contract import Contract, TowerFile
from mobileclip.export.describing import tower_file
from mobileclip.export.spec import Tower
from mobileclip.export.targets import Target
from mobileclip.export.targets.base import NotRunHereError
from mobileclip.export.towers.fallback import Fallback, fallbacks, grouped_convolutions
from mobileclip.export.towers.graph import TowerExport
from mobileclip.export.verification.measured import Measured, Outputs
from mobileclip.export.verification.parity import RANKING_GATE, Report
from mobileclip.export.verification.verify import report_on, run_tower
from mobileclip.terminal import console

_TRIAL = "trial"


class Attempts:
    """The attempts at a tower: each has more layers in float32 than the one before. The nearest lies in the folder.

    Args:
        export: the tower.
        folder: where its files go.
        contract: of the export, but for its files.
        target: what writes and runs them.
        measured: inputs and reference.
        show_progress: whether to tell what is being done.
    """

    def __init__(
        self,
        export: TowerExport,
        *,
        folder: Path,
        contract: Contract,
        target: Target,
        measured: Measured,
        show_progress: bool,
    ) -> None:
        self._export, self._folder, self._contract = export, folder, contract
        self._target, self._measured, self._show_progress = target, measured, show_progress
        self._name, self._precision = f"{export.stem}{target.suffix}", export.spec.precision
        inputs = measured.encoder_inputs(export.tower, export.encoder)
        self._fallbacks = fallbacks(export.encoder, inputs, self._precision, show_progress=show_progress)
        self._nearest: tuple[TowerFile, Outputs | None] | None = None

    @property
    def file(self) -> TowerFile:
        """What a contract says of the nearest attempt."""
        assert self._nearest is not None
        return self._nearest[0]

    @property
    def outputs(self) -> Outputs:
        """What the nearest attempt gives."""
        assert self._nearest is not None
        outputs = self._nearest[1]
        assert outputs is not None, "nobody has run it"
        return outputs

    @property
    def has_run(self) -> bool:
        """Whether a runtime here has run the tower."""
        return self._nearest is not None and self._nearest[1] is not None

    def write(self, others: Mapping[Tower, Outputs]) -> bool:
        """Go on from the attempts before until one passes the gates; return whether one does.

        What is for a runtime that is not here passes none; in int8, its grouped convolutions stay in float32 unasked.

        Args:
            others: what the files of other towers give; those of towers that are not named are the model's.
        """
        report = None if self._nearest is None else self._report(self.outputs, others)
        nearest = report
        while report is None or not self._passes(report):
            if report is not None:
                self._say(f"{self._name}: {'; '.join(report.failures)}")
            fallback = next(self._fallbacks, None)
            if fallback is None:
                return False
            file, outputs = self._attempt(fallback)
            if outputs is None:
                careful = grouped_convolutions(self._export.encoder)
                if self._precision == "int8" and careful.layers and not self._export.has_given_ranges:
                    shutil.rmtree(self._folder / _TRIAL)
                    file, _ = self._attempt(careful)
                self._nearest = file, None
                _move(self._folder / _TRIAL, self._folder, Path(self._name).parent)
                shutil.rmtree(self._folder / _TRIAL)
                return False
            report = self._report(outputs, others)
            if nearest is None or self._nearness(report) > self._nearness(nearest):
                nearest, self._nearest = report, (file, outputs)
                _move(self._folder / _TRIAL, self._folder, Path(self._name).parent)
            shutil.rmtree(self._folder / _TRIAL)
        return True

    def _attempt(self, fallback: Fallback) -> tuple[TowerFile, Outputs | None]:
        """Write the tower to a folder of its own; return its file, and what that gives, if its runtime is here."""
        kept = f", in float32: {fallback.name}" if fallback.name else ""
        self._say(f"writing {self._name} in {self._precision}{kept}")
        export, trial = attrs.evolve(self._export, fallback=fallback), self._folder / _TRIAL
        (trial / self._name).parent.mkdir(parents=True)
        file = tower_file(export, self._name, self._target.export(export, trial / self._name))
        contract = attrs.evolve(self._contract, towers=(file,))
        try:
            outputs = run_tower(trial, contract, self._target, file, self._measured, show_progress=self._show_progress)
        except NotRunHereError as error:
            self._say(str(error))
            return file, None
        return file, outputs

    def _report(self, outputs: Outputs, others: Mapping[Tower, Outputs]) -> Report:
        exported = {self._export.tower: outputs, **others}
        return report_on(exported, self._measured, precision=self._precision, data="", runtime=self._target.runtime)

    def _passes(self, report: Report) -> bool:
        """Return whether more layers in float32 are of no use; in 16 bits, near ties alone change places."""
        failed = {gate.name for gate in report.gates if not gate.passed}
        return not failed or (self._precision in ("float16", "bfloat16") and failed <= {RANKING_GATE})

    def _nearness(self, report: Report) -> tuple[int, float, float]:
        """Return what tells the better of two reports: gates, rankings, cosines of this tower."""
        cosines = [one.cosine_minimum or -1.0 for one in report.towers if one.tower == self._export.tower]
        return -len(report.failures), report.ranking.agreement, min(cosines)

    def _say(self, text: str) -> None:
        shown = console(shown=self._show_progress)
        if shown is not None:
            shown.print(text, highlight=False, soft_wrap=True)


def _move(trial: Path, folder: Path, below: Path) -> None:
    """Move a tower's files, or its folder, to where those of an earlier attempt may be.

    Args:
        trial: where it was written.
        folder: of the export.
        below: the folder in both that the tower lies in.
    """
    (folder / below).mkdir(parents=True, exist_ok=True)
    for path in (trial / below).iterdir():
        there = folder / below / path.name
        if there.is_dir():
            shutil.rmtree(there)
        path.replace(there)
