"""Fill uninitialised memory with NaN, so that tests detect kernels that do not write it."""

from helpers.uninitialised import nan_filled_empty as nan_filled_empty
