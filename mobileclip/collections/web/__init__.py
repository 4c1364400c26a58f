"""The local page of an index: one small server for the person at this machine, and the page that it shows.

What the page asks for and who may ask belongs here; how pictures are found does not.
"""
