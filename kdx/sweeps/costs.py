"""What the networks of a sweep cost to use, each measured once, after the jobs have ended: costs.json."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdx.results import FINISHED, NetworkCosts, as_text, load_sweep, read_costs, roles_of, swept_keys, write_costs
from kdx.sweeps.processes import forkserver

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Wanted = dict[tuple[str, ...], tuple[str, str, list[str]]]  # a network's identity: a run's folder, a role, fingerprints


def measure_costs(sweep_dir: Path, own: bool) -> None:
    """Measure what is not in costs.json yet, in one process with one thread; nothing where one network is delivered.

    `own`: networks of the user's own code are built, too, because the command that is under way has named them.
    """
    frame = load_sweep(sweep_dir)
    finished = frame[frame["status"] == FINISHED]
    delivered = {run[f"{run['delivered']}_network"] for run in finished.to_dict("records") if run["delivered"]}
    if len(delivered) < 2:
        return
    networks, measured = _networks(finished).values(), read_costs(sweep_dir)
    known = [_with_stages(costs, networks) for costs in measured]
    if known != measured:
        write_costs(sweep_dir, known)
    named = {fingerprint for costs in known for fingerprint in costs.fingerprints}
    wanted = [entry for entry in networks if not named & set(entry[2])]
    if not wanted:
        return
    log.info("measuring what %d network(s) cost to use", len(wanted))
    process = forkserver().Process(target=_measure, args=(sweep_dir, wanted, own), name="costs")
    process.start()
    process.join()
    if process.exitcode:
        log.warning("what the networks cost to use is not known: measuring ended with code %s", process.exitcode)


def _networks(frame: "pd.DataFrame") -> Wanted:
    """The networks of a sweep; where its images differ among jobs, one a kind of images."""
    of_images = [key for key in swept_keys(frame) if key == "dataset" or key.startswith("dataset.")]
    found: Wanted = {}
    for run in frame.to_dict("records"):
        for role in roles_of(frame):
            fingerprint = as_text(run[f"{role}_fingerprint"])
            if fingerprint:
                names = [f"{role}_network", f"{role}_stem", f"{role}_parameters", "data_hash", *of_images]
                identity = tuple(as_text(run[name]) for name in names)
                found.setdefault(identity, (run["folder"], role, []))[2].append(fingerprint)
    return found


def _with_stages(costs: NetworkCosts, networks: Iterable[tuple[str, str, list[str]]]) -> NetworkCosts:
    """A network's costs with all stages that have it, also those that were trained since it was measured."""
    more = [found for _, _, found in networks if set(found) & set(costs.fingerprints)]
    return replace(costs, fingerprints=sorted({*costs.fingerprints, *(stage for found in more for stage in found)}))


def _measure(sweep_dir: Path, wanted: list[tuple[str, str, list[str]]], own: bool) -> None:
    from kdx.chain.costs import add_costs

    add_costs(sweep_dir, wanted, own)
