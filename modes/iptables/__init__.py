"""The iptables mode: trees of chains, so that a new connection walks a number of rules that grows with the logarithm.

The kernel swaps a whole table whenever one rule changes, so what a change costs is how many rules there are at all:
a service of two endpoints takes three. Works with both flavours of iptables, and takes the one that the host uses.
"""
