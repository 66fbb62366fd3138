"""Audits and searches that many workers share, on one machine or several, through dask.distributed.

May import what runs and records a model, and what reads a trace; of the package the command line alone imports this.
"""
