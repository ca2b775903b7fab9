"""Benchmarks behind ``pfb bench``: every figure that the project publishes comes from one of these
commands.
"""
