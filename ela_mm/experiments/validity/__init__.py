"""A study of whether redundancy finds the layers that matter least."""
