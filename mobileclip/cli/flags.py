"""The flags of commands: short names, and those of every command."""

from __future__ import annotations

from mobileclip.terminal.flags import Reading

READING = Reading(
    letters={
        "output": ("-o",),
        "out": ("-o", "--output"),
        "model": ("-m",),
        "index_name": ("-i",),
        "k": ("-k",),
        "port": ("-p",),
        "num_workers": ("-j",),
        "num_threads": ("-j", "--num-workers"),
    }
)
"""Names that stand for a flag in every command that has it."""

COMMON = {
    "--quiet": "show no progress",
    "--strict": "end with status 1 in place of 0 where something was left out",
}
"""Flags of every command, with what they are for."""
