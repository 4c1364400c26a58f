"""Tasks that ask which of several texts or pictures is the right one.

ARO, SugarCrepe, Winoground, WinoGAViL, and long captions that are found for their pictures. How their files are read,
and what each counts, belongs here. Whatever else asks in this way becomes cases of a `ChoiceTask`, which encodes the
pictures, or parts of them, and the texts.
"""
