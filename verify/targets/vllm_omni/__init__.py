"""vllm-omni's own Bagel as a target: the installed package is imported, called and watched from outside.

Nothing of it is copied. ``target.py`` is what the suite sees; ``versions.py`` is the one place that knows versions.
"""
