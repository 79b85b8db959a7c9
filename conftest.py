"""Options, header and fixtures come from the package: a bare checkout needs no installation."""

import signal

pytest_plugins = ["verify.gate.plugin"]

# A shell starts background jobs with Ctrl-C ignored, and `verify`, which inherits it, keeps it so. The commands that
# tests start are to be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
