"""Networks of finished stages measured: what each costs to use, added to a sweep's costs.json."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from kdx.deploy.efficiency import measure_network
from kdx.deploy.load import Card
from kdx.deploy.run_loader import load_stage
from kdx.errors import KdxError
from kdx.results import NetworkCosts, read_costs, read_stages, write_costs

log = logging.getLogger(__name__)


def add_costs(sweep_dir: Path, wanted: Sequence[tuple[str, str, list[str]]], own: bool) -> None:
    """Measure networks on one thread of the CPU; what cannot be measured is told and left out.

    `wanted` holds a run's folder, a role, and the fingerprints of all stages that have its network. `own`: networks of
    a user's own code are built, too.
    """
    torch.set_num_threads(1)
    measured = read_costs(sweep_dir)
    for folder, role, fingerprints in wanted:
        name = read_stages(Path(folder))[role].network
        try:
            stage = load_stage(Path(folder), role, network=name if own else None)
            card = Card.of(stage.meta, stage.checkpoint)
            efficiency = measure_network(stage.network, (card.in_channels, *card.input_size), torch.device("cpu"))
        except (KdxError, RuntimeError, MemoryError) as error:  # the report stands without it
            log.warning("the costs of %s cannot be measured: %s", name, str(error).split("\n")[0])
            continue
        measured.append(NetworkCosts(name, sorted(set(fingerprints)), efficiency))
    write_costs(sweep_dir, measured)
