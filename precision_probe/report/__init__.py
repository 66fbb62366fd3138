"""Figures made of the tables of ``analysis``, and the page of a trace.

Here belongs what people look at outside a terminal. Imports ``analysis``, ``trace`` and the package's own modules, and
neither torch nor mace.
"""
