"""The ipvs mode: a virtual server for each frontend, in the kernel's own load balancer, with all of its schedulers.

All that netfilter has to do for it is done by a fixed number of rules that look into sets. So a change is a handful of
netlink messages, and no process is started for it.
"""
