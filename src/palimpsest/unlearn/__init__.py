"""Systems that make a classifier, encoder or regressor forget a class, an identity or given samples."""
