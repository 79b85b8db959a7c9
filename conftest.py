"""The options of a checkout and the package's own plugin: nothing need be installed."""

import signal
from pathlib import Path

# A session elsewhere that takes the claims from here, as from an editable installation, keeps its own options.
pytest_plugins = ["checkout"] if Path.cwd().is_relative_to(Path(__file__).parent) else []

# A shell starts background jobs with Ctrl-C ignored, and `verify`, which inherits it, keeps it so. The commands that
# tests start are to be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
