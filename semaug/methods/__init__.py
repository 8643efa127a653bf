"""The methods, one paper a module."""
