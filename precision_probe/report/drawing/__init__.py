"""Drawings as SVG: charts, a network of blocks, a molecule.

Here belongs what knows places and colours, and nothing of traces.
"""
