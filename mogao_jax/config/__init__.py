"""Settings: frozen dataclasses (schema), and their way in from files and flags.

files: what a config file and flags say; convert: into dataclasses; checks: between fields;
renamed: old names of fields.
"""

from mogao_jax.config.checks import check
from mogao_jax.config.convert import default_config, from_config_dict, from_dict, source, to_dict
from mogao_jax.config.files import load_config, parse_config_args
from mogao_jax.config.schema import MogaoConfig, SourceConfig

__all__ = [
    "MogaoConfig",
    "SourceConfig",
    "check",
    "default_config",
    "from_config_dict",
    "from_dict",
    "load_config",
    "parse_config_args",
    "source",
    "to_dict",
]
