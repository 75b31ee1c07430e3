"""The stages of the pipeline: one thin file per stage of dvc.yaml, run as `python -m pipeline.<stage>`."""
