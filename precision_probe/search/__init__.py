"""Policies proposed, measured, chosen and tested.

Here belongs the way from a tolerance to a policy. Imports ``diagnostics``, ``variants``, ``models``, and of ``trace``
and ``analysis`` what a result is kept in and measured by; ``probe`` and ``search`` know nothing of one another.
"""
