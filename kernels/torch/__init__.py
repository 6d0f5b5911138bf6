"""Read-out and linear algebra in torch, on any device that it knows and that has float64."""
