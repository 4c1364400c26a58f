"""Files read and encoded for an index: in this process, or by the workers of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import attrs

from mobileclip.collections.indexing.findings_writer import FindingsWriter
from mobileclip.collections.indexing.known import KnownFiles
from mobileclip.collections.indexing.units import IndexUnit, IndexWork, units_of
from mobileclip.collections.reading.findings import Findings
from mobileclip.collections.reading.options import IndexOptions
from mobileclip.collections.reading.reader import FileReader
from mobileclip.collections.reading.scanning import FoundFile, estimated_pictures
from mobileclip.collections.store.store import Store
from mobileclip.engines import Engine, Listener, SetAside, held, read_set_aside
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inference.quickening import quickened
from mobileclip.progress import Progress
from mobileclip.terminal import console

# A process takes seconds to start, and is not worth it for fewer.
_EACH = 64
# As many as forms of a model are tried on.
_EXAMPLES = 16


@attrs.frozen(kw_only=True, eq=False)
class FileEncoder:
    """Has files read and encoded, and what is found in them written down.

    Args:
        store: of the index, which the caller holds.
        known: what the index knows of files.
        writer: writes to the index.
        options: how.
        trust: see `update`.
    """

    store: Store
    known: KnownFiles
    writer: FindingsWriter
    options: IndexOptions
    trust: bool = False

    def encode_here(self, files: Sequence[FoundFile], clip: ImageTextModel) -> None:
        """Read and encode in this process, with those that decode beside it.

        Args:
            files: that are read.
            clip: encodes.

        Raises:
            LostProcessError: if one of the processes ends abruptly; what was finished before is in the index.
            OSError: if the index cannot be written.
        """
        options, writer, num_about = self.options, self.writer, estimated_pictures(files)
        clip = quickened(
            clip,
            (Path(file.path) for file in files if file.kind == "picture"),
            num_about,
            precision=options.precision,
            show_progress=options.show_progress,
        )
        tasks = [self.known.task(file) for file in files]
        reader = FileReader(tasks, self.known.content(), options)
        num_workers = min(options.num_workers, 1 + num_about // _EACH)
        writer.start_clock()
        try:
            with self._bar(num_about) as bar:
                for _ in reader.read(clip, num_workers):
                    # A file that is being read may hold more than was expected.
                    is_more = bar.done >= reader.num_expected
                    bar.expect(bar.done + 2 if is_more else reader.num_expected)
                    bar.advance()
                    if writer.is_due(reader.findings.num_rows):
                        writer.add(reader.take())
        except (KeyboardInterrupt, ValueError):
            writer.add(reader.take())
            writer.flush()
            raise
        writer.add(reader.take())
        writer.flush()

    def share(self, files: Sequence[FoundFile], engine: Engine) -> tuple[SetAside, ...]:
        """Have an engine read and encode, and return what it has set aside.

        Args:
            files: that are read.
            engine: whose workers have a model each.

        Raises:
            ValueError: if no worker can work.
            OSError: if the index cannot be written.
        """
        about = self.store.about
        units = units_of(
            [self.known.task(file) for file in files],
            self.known.content_like,
            engine.most_workers(len(files)),
            suspects=self.suspects(),
        )
        job = IndexWork(
            source=about.model,
            trust=self.trust,
            identity=about.identity,
            folder=str(self.store.folder),
            options=self.options,
            num_pictures=estimated_pictures(files) // engine.most_workers(len(units)),
            examples=tuple(islice((file for file in files if file.kind == "picture"), _EXAMPLES)),
        )
        # The store holds the folder for as long as it is written to.
        with held(job.folder, engine, is_held=True) as run, self._bar(len(files)) as bar:
            run.begin("indexing", num_units=len(units), called="groups of files")
            try:
                run.do(job, units, _Entering(self.writer, bar))
            except (KeyboardInterrupt, ValueError):
                self.writer.flush()
                raise
            self.writer.flush()
            return run.set_aside

    def suspects(self) -> set[str]:
        """Return the paths of files that were set aside before."""
        return {aside.unit for aside in read_set_aside(self.store.folder)}

    def _bar(self, total: int) -> Progress:
        return Progress("indexing", total=total, unit="pictures", console=console(shown=self.options.show_progress))


class _Entering(Listener[IndexUnit, Findings]):
    """Enters into the index what workers find."""

    def __init__(self, writer: FindingsWriter, bar: Progress) -> None:
        self._writer, self._bar = writer, bar

    def advanced(self, count: int) -> None:
        """Show how fast pictures are read; a file counts when it is done."""
        self._bar.advance(0, count=count)

    def finished(self, unit: IndexUnit, entry: Findings) -> None:
        """Enter it."""
        self._writer.add(entry)
        self._bar.advance(len(unit.tasks), count=0)

    def gave_up(self, unit: IndexUnit, aside: SetAside) -> None:  # noqa: ARG002 - as a `Listener` does
        """Show that no more is done for it."""
        self._bar.advance(len(unit.tasks), count=0)
