"""What runs and sweeps left, as typed records and as a pandas DataFrame; imports neither torch nor pandas by itself."""

from kdx.results.frame import Configuration as Configuration
from kdx.results.frame import configurations as configurations
from kdx.results.frame import epochs as epochs
from kdx.results.frame import grid as grid
from kdx.results.frame import grouped as grouped
from kdx.results.frame import load as load
from kdx.results.frame import load_sweep as load_sweep
from kdx.results.frame import override_keys as override_keys
from kdx.results.frame import roles_of as roles_of
from kdx.results.frame import swept_keys as swept_keys
from kdx.results.logs import read_log as read_log
from kdx.results.overrides import as_text as as_text
from kdx.results.records import SUMMARY as SUMMARY
from kdx.results.records import SWEEP as SWEEP
from kdx.results.records import Origin as Origin
from kdx.results.records import PlanEntry as PlanEntry
from kdx.results.records import Run as Run
from kdx.results.records import ScoresOnTest as ScoresOnTest
from kdx.results.records import ScoresOnValidation as ScoresOnValidation
from kdx.results.records import Stage as Stage
from kdx.results.records import SweepJob as SweepJob
from kdx.results.records import read_run as read_run
from kdx.results.records import read_stages as read_stages
from kdx.results.records import read_sweep as read_sweep
from kdx.results.records import write_run as write_run
from kdx.results.records import write_sweep as write_sweep
