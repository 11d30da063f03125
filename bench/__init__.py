"""The lab of network namespaces, and what is measured and shown in it."""
