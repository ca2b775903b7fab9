"""Errors that a person at the command line can act on; the command line prints them without a
traceback.
"""


class RunError(Exception):
    """Something outside the code stopped the run: the message names the rule, the value got and the
    way out.
    """
