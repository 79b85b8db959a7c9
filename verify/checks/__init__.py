"""Judging traces: one file a claim, pure functions.

Nothing is imported here, so that the words of the checks (``records.py``) can be read without torch.
"""
