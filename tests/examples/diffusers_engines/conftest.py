"""Without diffusers there is nothing to collect here: its environment is ``tox run -e diffusers``."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("diffusers") else ["*.py"]
