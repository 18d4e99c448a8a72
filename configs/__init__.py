"""Preset configs and their schema, shipped inside the wheel."""
