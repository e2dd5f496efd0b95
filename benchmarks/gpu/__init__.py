"""Checks and times the CUDA kernels on a GPU, against torch: python -m benchmarks.gpu --out DIR

stages.py is the order of events. A stage is a list of tasks, which worker.py does in a process of its own: what
crashes or hangs there costs one task. An op is a file, as everywhere: its inputs, its truth in float64, its shapes and
its peers.
"""
