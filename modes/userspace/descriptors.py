"""The last descriptors that this process may have: they are kept from clients, so that it still hears the proxy and can
listen at a few new places when clients have all others.

The kernel gives the lowest number that is free (open(2)), so a high one tells that few are left.
"""

import resource

_KEPT, _PART = 64, 16
"""So many, but no more than one in sixteen."""


def is_kept(descriptor: int) -> bool:
    """Whether it is one of them, so that what a client was to have it for has to be done without."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return descriptor >= most - min(_KEPT, most // _PART)
