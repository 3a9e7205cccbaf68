"""Does redundancy find the layers that matter least? A study of that."""
