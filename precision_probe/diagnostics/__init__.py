"""What explains an error, found out by running a model with one thing changed.

Here belongs a question that needs the model: one file for each. Imports ``variants``, ``models``, and of ``trace`` and
``analysis`` what a result is kept in and measured by.
"""
