"""The configuration: keys are defined once in `model`; reader, writer and documentation derive from that.

Only the composition root uses the whole `Config`. Every other part gets the section that it needs.
"""

from cri_shim.config.load import DEFAULT_FILE, load_config
from cri_shim.config.model import Config
from cri_shim.config.reload import ReloadPlan, reloadable_changes, without_effect

__all__ = [
    "DEFAULT_FILE",
    "Config",
    "ReloadPlan",
    "load_config",
    "reloadable_changes",
    "without_effect",
]
