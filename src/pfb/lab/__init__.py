"""The laboratory around the library: trainer, baselines, benchmarks, reports, command line. Needs
``torch-pfb[train]``.
"""
