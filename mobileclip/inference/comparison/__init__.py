"""What another form of a model is compared with the model on, and how: pictures, captions, times and distances.

Exports are compared in the same way. What is done with the result does not belong here.
"""
