"""The command line: one verb for each task, and the tables it prints.

Here belongs what talks to a person in a terminal. It uses the package as any user does, by its public names where there
are such, and imports nothing heavy before a verb needs it.
"""
