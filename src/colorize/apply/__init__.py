"""What a person does with a trained model: color, score, export, the command line, the page."""
