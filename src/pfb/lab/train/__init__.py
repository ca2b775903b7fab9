"""The trainer behind ``pfb train``: an ordinary loop on Accelerate with the three lines of pfb in
it.
"""
