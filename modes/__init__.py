"""The back ends of pyproxy, one module or folder each. No mode imports another."""
