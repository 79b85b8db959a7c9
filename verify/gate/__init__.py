"""The gate: each claim that a loop without a broadcast rests on, as pytest tests against a target.

``pytest --pyargs verify.gate --verify-target my.module:Target``
"""
