"""Traces in several files, each of a part of the structures, as processes that share a run write them."""
