"""Models kept without pickle: one safetensors file that holds a MACE's architecture as JSON beside its tensors.

Here belongs what turns a model into such a file and back, and what proves that both are the same. Imports ``models``,
and ``variants`` for models in mixed precision; :func:`precision_probe.models.loading.load_model` finds ``files`` by its
name, as it must load what this package makes of models.
"""
