"""Where the model and the data pipeline meet: configurations, entry points, reports."""
