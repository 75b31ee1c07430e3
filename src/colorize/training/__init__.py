"""One loop for all models, its devices and its ranks."""
