"""Use trained models: color, score, export, the command line, the page."""
