"""Runners: how a batch of rows goes through the model."""
