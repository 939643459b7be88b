"""Paths in a config mean the folder in which the command was started, wherever the process works later."""

import copy
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdx.config.roles import roles_of
from kdx.config.schema import DatasetSchema, RoleSchema, Schema
from kdx.ranges import Folder


def anchored(config: DictConfig, start: Path) -> DictConfig:
    """A copy of a config whose relative paths are absolute, as seen from `start`."""
    anchored_config = copy.deepcopy(config)
    for key in _path_keys(config):
        value = OmegaConf.select(config, key)
        if isinstance(value, str) and not (key.endswith(".start") and value in roles_of(config.stage)):
            OmegaConf.update(anchored_config, key, str(start / value))
    return anchored_config


def _path_keys(config: DictConfig) -> Iterator[str]:
    schemas: list[tuple[str, Any]] = [("", Schema), ("dataset.", DatasetSchema)]
    schemas += [(f"stage.{role}.", RoleSchema) for role in roles_of(config.stage)]
    for prefix, schema in schemas:
        yield from (prefix + field.name for field in fields(schema) if isinstance(field.metadata["rule"], Folder))
