"""Recorded demonstrations: read them, check them against an environment, draw from them, write them."""
