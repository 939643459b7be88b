"""Data sets and what is done to their images; a user's own data set is made with these names."""

from kdx.data.dataset import Dataset as Dataset
from kdx.data.dataset import Split as Split
from kdx.data.dataset import from_arrays as from_arrays
