"""Kernel tests run with uninitialised memory filled with NaN."""

from helpers.uninitialised import nan_filled_empty as nan_filled_empty
