from .probe import Probe, attach

__all__ = ["Probe", "attach"]
