"""The published runs: their command lines, the choices that they share, and the small world that tries them.

What a published run chooses belongs here; what carries out a run, in `training`, `reinforce` and `evaluation`.
"""
