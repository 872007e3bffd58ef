"""Memory that a kernel takes and does not write comes out as NaN."""

from helpers.uninitialised import nan_filled_empty as nan_filled_empty
