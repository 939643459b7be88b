"""Pictures of what a layer sees."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdx.visualize.attention import save_attention_maps as save_attention_maps
    from kdx.visualize.feature_maps import extract_and_visualize_features as extract_and_visualize_features
    from kdx.visualize.feature_maps import save_feature_maps as save_feature_maps
    from kdx.visualize.feature_maps import visualize_feature_maps as visualize_feature_maps

ATTENTION = "save_attention_maps"
NAMES = (ATTENTION, "extract_and_visualize_features", "save_feature_maps", "visualize_feature_maps")


def __getattr__(name: str) -> Any:
    """The functions above, once one is asked for: `python -m kdx.visualize --help` needs no torch."""
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"kdx.visualize.{'attention' if name == ATTENTION else 'feature_maps'}"), name)
