"""Options, header and fixtures come from the package: a bare checkout needs no installation."""

pytest_plugins = ["verify.pytest_plugin"]
