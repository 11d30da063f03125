"""pyproxy: a Kubernetes service proxy whose packets are carried by the kernel."""

__version__ = "0.1.0"
