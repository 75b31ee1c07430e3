"""Automatic image colorization: the library behind the pipeline."""
