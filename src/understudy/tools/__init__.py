"""What is done with a finished policy: score, record, export, film, plot."""
