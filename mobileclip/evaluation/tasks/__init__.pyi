from .linear_probe import split_folders as split_folders
