"""How near an export is to its model, the acceptance checks it must pass, and what is kept in float32 so that it does.

The contract, which says what came of it, does not belong here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
