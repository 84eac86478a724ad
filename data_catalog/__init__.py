"""One card for each dataset: source, licence, labels, patients and known biases."""
