"""Datasets: from names, files, folders and the hub to four splits. datasets.py is the way in."""
