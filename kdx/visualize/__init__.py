"""Pictures of what a layer sees."""

from kdx.visualize.feature_maps import extract_and_visualize_features as extract_and_visualize_features
from kdx.visualize.feature_maps import save_feature_maps as save_feature_maps
from kdx.visualize.feature_maps import visualize_feature_maps as visualize_feature_maps
