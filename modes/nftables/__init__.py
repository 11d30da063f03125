"""The nftables mode: few chains, everything else set elements.

A chain per service makes the kernel walk all sets of a transaction for each of them, n² in the number of services.
Here services and endpoints are elements of a dozen named maps, chains number as many as there are distinct
behaviours, and a new connection costs a fixed number of lookups at any size.
"""
