"""The configuration: defined once in `model`, read strictly, explained in its own words.

`Config` is for the composition root; every other part is handed the section it needs.
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
