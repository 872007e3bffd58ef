"""Shared by tests of the number of threads."""

import torch


def on_threads(compute, numbers=(1, 2, 5)):
    """What `compute` returns with each number of threads."""
    before = torch.get_num_threads()
    try:
        results = []
        for number in numbers:
            torch.set_num_threads(number)
            results.append(compute())
        return results
    finally:
        torch.set_num_threads(before)
