"""Adapters for trainers that own the loop. Each needs its trainer's package, and imports it
alone.
"""
