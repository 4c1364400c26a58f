"""How near an export is to its model, the gates that it must pass, and what is kept in float32 so that it does.

The contract, which says what came of it, does not belong here.
"""
