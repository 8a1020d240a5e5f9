"""Speed of training: against other libraries (W1 to W4), against another checkout, of collecting, with more copies."""
