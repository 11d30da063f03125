"""Runs any command of this checkout inside another Linux kernel: `python -m tests.kernels uml -- COMMAND…`

What a mode needs may not be in the kernel at hand: IPVS, for one, is a module, and container hosts rarely load it. So
the tests bring a kernel along. Its guest lives on this machine's own file system, this checkout and its virtual
environment included, but what it writes goes to memory of its own.
"""
