"""What more than one room asks of the kernel: netlink, local routes, own addresses, and programs of the host.

Below the table, so that modes may use it. Knows addresses, and nothing of Kubernetes or of forwarding.
"""
