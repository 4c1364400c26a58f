"""What a run leaves for people to read: metrics, curves, runs side by side, and what its data lost.

What a run needs to go on belongs in `checkpoints`.
"""
