from .building import build, default_config, save_model
from .dtypes import default_dtype
from .loading import load_model

__all__ = ["build", "default_config", "default_dtype", "load_model", "save_model"]
