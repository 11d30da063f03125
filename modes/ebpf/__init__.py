"""The ebpf mode: sockets of this node are connected to a backend at once, so that their packets cost nothing.

What a socket can't decide, and what comes from elsewhere, is decided packet by packet. No netfilter rule, no conntrack.
"""
