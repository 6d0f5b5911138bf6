"""Is an explanation true? Retrain and see. Empty for now."""
