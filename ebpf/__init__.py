"""The eBPF programs in C, and what puts them and their maps into the kernel.

Programs and maps outlive the process that loaded them: they are pinned in the BPF file system, and found there again.
"""
