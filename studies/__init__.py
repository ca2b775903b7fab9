"""Questions asked once, for the documents: run from a checkout with ``python -m studies NAME``. Not
part of the package.
"""
