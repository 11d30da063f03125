"""The userspace mode: local routes claim addresses, sockets listen on them, an event loop relays. No netfilter, no BPF.

The relay is a process of its own, which outlives the proxy: to stop it, or to put a newer one in its place, ends no
connection. The proxy binds the sockets and hands them over, so the relay needs no capability at all.
"""
