"""Logging of published generations to an MLflow server, if one is configured."""
