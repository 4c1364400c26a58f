"""Processes forked from a server that has imported what the processes of tests need: 0.05 s each instead of 2 s.

A Python process has one such server, and what the server imports is fixed when it starts; so all tests share this list.
"""

import multiprocessing

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    ["mobileclip.engines.local", "tests.contracts.engines", "tests.engines.works", "tests.storage.processes"]
)
