"""Demonstrations and motions."""
