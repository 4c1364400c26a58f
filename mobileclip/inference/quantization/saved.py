"""Saves the state of a tuning, so that a stopped one resumes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mobileclip import storage
from mobileclip.encoders.checkpoints.saving import write_tensors
from mobileclip.tensor_files import read_tensors

_OF = "mobileclip.tuning_of"


class SavedTunings:
    """The tunings of a model's towers in a file beside the output; none where there is no file yet.

    Args:
        output: what is written in the end.
        of: digest of the model, the inputs and the choices.
        anew: whether a file of another tuning is left aside, and replaced.

    Raises:
        ValueError: if there is a file of another tuning, and it is not to be replaced.
        CheckpointError: if it cannot be read.
    """

    def __init__(self, output: Path, *, of: str, anew: bool) -> None:
        self.path = state_file(output)
        self._of = of
        self._tensors: dict[str, Tensor] = {}
        if not self.path.exists():
            return
        tensors, metadata = read_tensors(self.path)
        if metadata.get(_OF) == of:
            self._tensors = tensors
        elif not anew:
            raise ValueError(
                f"{self.path} is left of a tuning of another model, other inputs or other choices; give the same again "
                "to go on with it, or --overwrite to start anew"
            )

    def of_tower(self, tower: str) -> dict[str, Tensor]:
        """Return what was kept of a tower by its name; nothing where it has not begun."""
        prefix = f"{tower}:"
        return {name.removeprefix(prefix): tensor for name, tensor in self._tensors.items() if name.startswith(prefix)}

    def keep(self, tower: str, tensors: dict[str, Tensor]) -> None:
        """Write what is to be kept of a tower, beside the others; the file is there whole, as before or as now."""
        prefix = f"{tower}:"
        others = {name: tensor for name, tensor in self._tensors.items() if not name.startswith(prefix)}
        self._tensors = others | {f"{prefix}{name}": tensor.contiguous() for name, tensor in tensors.items()}
        write_tensors(self.path, self._tensors, {_OF: self._of})

    def remove(self) -> None:
        """Remove the file."""
        storage.remove(self.path)


def state_file(output: Path) -> Path:
    """Return where the state of a tuning is, beside what it writes in the end."""
    return output.with_name(f"{output.stem}.tuning.safetensors")
