"""The version of the library, in a file of its own so that nobody imports the whole package for a string."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("understudy-rl")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"
