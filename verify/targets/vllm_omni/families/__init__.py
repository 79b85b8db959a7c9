"""vllm-omni's other model families, each by an adapter that calls upstream's own loop with a small stand-in network.

``family.py`` is what an adapter fills in, ``target.py`` what the suite sees, ``registry.py`` the list. An adapter names
upstream's class and calls its loop; everything that families share is here once.
"""
