"""What a step minimises: the loss of a model on a batch, in pieces that fit into memory.

The formulas are those of `losses`; what is done with the gradients does not belong here.
"""
