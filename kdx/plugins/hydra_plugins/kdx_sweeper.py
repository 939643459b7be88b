"""Hydra's sweeper, for experiment files that name a stage's own key, `stage.student.labelled: 0.02,0.1`."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper as HydrasSweeper
from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.core.config_store import ConfigStore

from kdx.config.stage_overrides import to_hydra


class BasicSweeper(HydrasSweeper):
    """Takes `hydra.sweeper.params` as a command line is taken: overrides of one stage are put in Hydra's words."""

    def _parse_config(self) -> list[str]:
        return list(map(to_hydra, super()._parse_config()))


# In the place of Hydra's own of this name.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="basic",
    node=BasicSweeperConf(_target_=f"{__name__}.{BasicSweeper.__name__}"),
    provider="kdx",
)
