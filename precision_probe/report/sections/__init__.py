"""The sections of the page, a module for each: from a trace to tables and figures.

Each has a function that gives its section, or ``None`` where the trace has nothing for it.
"""
